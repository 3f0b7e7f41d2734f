-- Sums of the transfers up to the id in meta 'book_sums_up_to', so that the books can be added up
-- often. Books below 100 are the node's own; 100 stands for all accounts together.
CREATE TABLE book_sums (
    book        INTEGER PRIMARY KEY,
    amount_msat INTEGER NOT NULL
) STRICT;

-- Few rows, so that summing our coins reads none of those that are gone.
CREATE INDEX proofs_reserved ON proofs (mint, unit, amount) WHERE state = 'reserved';
