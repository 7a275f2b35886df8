"""Faults of the network between one machine, or the producer, and the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scripts.proofs.faults.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.proofs.faults.scene import Scene
    from tests.worker.faults.proxy import Proxy

_DELAY_S = 0.2
_PASSING_ERRORS = ("LOADING the dataset is being loaded", "MASTERDOWN the link is down", "TRYAGAIN later")


def _for_a_while(scene: Scene, begin: Callable[[Proxy], Any], leases: float) -> bool:
    name, proxy = scene.a_network()
    for_s = scene.lease_s * scene.random.uniform(0.2, leases)
    return scene.spell(f"network of {name}", for_s, lambda: begin(proxy), proxy.heal)


def _forget(scene: Scene) -> bool:
    return scene.a_network()[1].forget() > 0


def _black_hole(scene: Scene) -> bool:
    return _for_a_while(scene, lambda proxy: proxy.black_hole(), 2)


def _reset(scene: Scene) -> bool:
    scene.a_network()[1].reset()
    return True


def _delay(scene: Scene) -> bool:
    return _for_a_while(scene, lambda proxy: proxy.delay(_DELAY_S), 2)


def _cut_answers(scene: Scene) -> bool:
    return _for_a_while(scene, lambda proxy: proxy.cut_answers(3), 0.5)


def _flap(scene: Scene) -> bool:
    """Up and down a few times."""
    name, proxy = scene.a_network()
    what = f"network of {name}"
    if not scene.hold(what):
        return False
    left = 2 * scene.random.randint(2, 5)

    def turn() -> None:
        nonlocal left
        if left == 0 or scene.over:
            proxy.heal()
            scene.release(what)
            return
        (proxy.refuse_connections if left % 2 == 0 else proxy.heal)()
        left -= 1
        scene.later(scene.random.uniform(0.1, 1.0), turn)

    turn()
    return True


def _refuse(scene: Scene) -> bool:
    error = scene.random.choice(_PASSING_ERRORS)
    return _for_a_while(scene, lambda proxy: proxy.answer_with(error), 1)


FAULTS = (
    Fault("silent", "open connections are forgotten without a word (a NAT, a VPN); new ones pass", _forget, 3),
    Fault("black-hole", "nothing passes for a while, new connections neither", _black_hole),
    Fault("rst", "open connections are reset", _reset),
    Fault("delay", "200 ms each way, for a while", _delay),
    Fault("half-answer", "answers that are cut in their middle, then a reset", _cut_answers),
    Fault("flapping", "connections are reset and refused, then not, a few times", _flap),
    Fault("loading", "every command is answered with LOADING, MASTERDOWN or TRYAGAIN for a while", _refuse),
)
