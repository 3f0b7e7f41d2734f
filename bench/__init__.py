"""A benchmark of the node beside a bare proxy; see docs/performance.md.

    make bench                  everything, some minutes
    make bench ARGS=--quick     a first impression

Programs that run as children: ``stub`` (model server), ``proxy`` (the yardstick), ``mint`` (a
fast double), ``load`` and ``nostr_load`` (clients), ``profiled`` (the node under cProfile). The
rest runs them: ``plan`` (what is measured), ``world`` (what runs), ``rounds`` (how), ``summary``
and ``targets`` (what it comes to), ``report``; or measures ``parts`` without them.
"""
