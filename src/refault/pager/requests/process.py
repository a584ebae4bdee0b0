"""The process as a whole: what it counts, its bound, its end."""

from __future__ import annotations

import functools

from refault.errors import StoreError
from refault.fault.reclaim import sync_units
from refault.memory.wait import Waits
from refault.wire import messages as wire

from ..patience import Patience
from ..tasks import PagerTask
from .request import Request, cause_of, region_of

__all__ = ["configure", "handled", "shutdown", "statistics"]


def statistics(request: Request, message: wire.Statistics, fds: list[int]) -> None:
    pager = request.client.pager
    if message.region is not None:
        mappings = [region_of(request, message.region).mapping]
        budget = mappings[0].budget
    else:
        mappings = list(pager.mappings())
        budget = pager.budget
    values: dict[str, int | float] = {}
    for mapping in mappings:
        counters = mapping.counters
        for name in counters.__slots__:
            value = getattr(counters, name)
            if name == "max_attempts":
                values[name] = max(values.get(name, 0), value)
            else:
                values[name] = values.get(name, 0) + value
        values["dirty"] = values.get("dirty", 0) + mapping.dirty * mapping.page_size
        values["pinned"] = values.get("pinned", 0) + len(mapping.pins) * mapping.page_size
        values["page_size"] = mapping.page_size
        values["windows"] = values.get("windows", 0) + sum(
            len(one.windows) for one in mapping.windows
        )
        values["window_bytes"] = values.get("window_bytes", 0) + mapping.window_bytes
    values["resident"] = budget.usage
    values["peak_resident"] = budget.peak
    values["budget"] = budget.limit if budget.limit is not None else -1
    values["regions"] = len(pager.regions)
    values["copies"] = pager.machine.copies.usage
    values["duplicate_messages"] = sum(client.duplicates for client in pager.clients)
    bursts = pager.placement.bursts()
    values["bursts"], values["bursts_ended"] = bursts.served, bursts.ended
    for name, number in pager.swap.statistics().items():
        values[f"swap_{name}"] = number
    request.answer(wire.Done(values))


def configure(request: Request, message: wire.Configure, fds: list[int]) -> None:
    pager = request.client.pager
    pager.budget.set_limit(message.resident)
    pager.trim(pager.budget)
    request.answer(wire.Done())


def handled(request: Request, message: wire.Handled, fds: list[int]) -> None:
    request.client.handled()
    request.answer(wire.Done())


def shutdown(request: Request, message: wire.Shutdown, fds: list[int]) -> None:
    client = request.client

    def work(task: PagerTask) -> Waits[wire.Reply]:
        for region in list(client.regions.values()):
            mapping = region.mapping
            if mapping.private or not mapping.writable:
                continue
            stuck = StoreError(
                f"{mapping.name}: takes no changes; the pager goes on without the program, for a"
                " while, and says on stderr what became of them"
            )
            patience = Patience(
                client.pager.loop, mapping, region.deadline, functools.partial(request.fail, stuck)
            )
            try:
                failed = yield from sync_units(
                    client.pager.machine, mapping, 0, mapping.pages, task
                )
            finally:
                patience.cancel()
            if failed is not None:
                raise StoreError(f"{mapping.name}: {cause_of(mapping, failed)}")
        for region in list(client.regions.values()):
            yield from client.pager.working_sets.save(region.mapping, task)
        return wire.Done()

    request.run("shutdown", work)
