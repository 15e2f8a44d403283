"""What every plugin package promises, whatever it registers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ..errors import PluginError
from ..plugins import KINDS, PluginInfo, Provided, registry, resolve
from ..runtime.metadata import normalise
from . import probe
from .promises import Promises, fail, promise, say

__all__ = ["PluginConformance", "ask"]


class PluginConformance(Promises):
    """The checks of a plugin package. Inherit it in a class that pytest collects.

    Attributes:
        distribution: name of the installed distribution, for example ``"cornstarch-series"``.
        heavy: modules that activating it must not import.

    One check starts a process that imports transformers, which takes some seconds.

    Example:
        >>> from cornstarch_core.testing import PluginConformance
        >>> class TestPlugin(PluginConformance):
        ...     distribution = "cornstarch-vision"
        >>> TestPlugin().test_specs_can_be_pickled()
    """

    distribution: str
    heavy: tuple[str, ...] = ("numpy", "torch", "transformers")

    @property
    def plugin(self) -> str:
        """The plugin's id."""
        return normalise(self.distribution)

    @property
    def provided(self) -> list[Provided]:
        """What it registers."""
        offers = (registry().lookup(kind, name) for kind in KINDS for name in registry().names(kind))
        return [one for one in offers if one.plugin == self.plugin]

    # --- checks -------------------------------------------------------------------------------------------------------

    @promise()
    def test_it_is_active(self) -> None:
        """It is installed, found by its entry point, and keeps the rules of the hooks."""
        registry().activate()
        infos = registry().plugins()  # of two copies the one that Python imports stands first
        info = next((info for info in infos if info.id == self.plugin), None)
        if info is None:
            others = ", ".join(info.id for info in infos)
            fail(
                f"{self.plugin}: it is not among the plugins that are installed here ({others or 'none'}).",
                'Give its pyproject.toml an entry point in [project.entry-points."cornstarch.plugins"], and install '
                "it: pip install -e .",
            )
        if info.state != "active":
            fail(f"{info.explain()}.", _repair(info))

    @promise("test_it_is_active")
    def test_importing_it_is_light(self) -> None:
        """Activating it imports no torch, transformers or numpy: every process that uses any plugin pays for that."""
        found: dict[str, str] = ask("heavy_imports", self.plugin, self.heavy)
        if found:
            shown = ", ".join(f"{name} ({place})" for name, place in found.items())
            fail(
                f"{self.plugin}: activating it imports {shown}, in every process that uses any plugin.",
                "Keep the module of the entry point, and the __init__.py of the packages above it, free of them: name "
                "functions in the specs as 'package.module:attribute', and import what is needed inside of them.",
            )

    @promise("test_it_is_active")
    def test_activating_it_again_gives_the_same_specs(self) -> None:
        """In a spawned worker, as data loaders have, it registers what it does here; and so it does a second time."""
        here = probe.plain([(one.kind, one.spec) for one in self.provided])
        for time, there in zip(("", " a second time"), self._activated_in_a_worker(), strict=True):
            if there != here:
                fail(
                    f"{self.plugin}: activated{time} in a spawned worker, it {_difference(here, there)}.",
                    "Let the hooks return new lists that depend on nothing but the installed package: no list of the "
                    "module that they append to, no look at the process or the environment.",
                )

    def _activated_in_a_worker(self) -> list[Any]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(probe.activate_twice, self.plugin).result()
            except BrokenProcessPool:
                fail(
                    f"{self.plugin}: a spawned worker that activates it dies.",
                    "Let the plugin's module be imported in any process; try python -c 'from cornstarch_core.plugins "
                    "import registry; registry().activate()'.",
                )

    @promise("test_it_is_active")
    def test_every_target_resolves(self) -> None:
        """What its specs name is there, can be called, and classes are named by where they are defined."""
        for one in self.provided:
            for field, target in probe.targets(one.spec):
                if problem := _problem(field, target):
                    fail(f"{_where(one, field)}: {problem[0]}", problem[1])
            self._check_reference(one)

    def _check_reference(self, one: Provided) -> None:
        name = getattr(one.spec, "processor", None)
        if name is None:
            return
        try:
            registry().lookup("processors", name, prefer=one.plugin)
        except PluginError as error:
            fail(f"{_where(one, 'processor')}: {error}.", "Register a ProcessorSpec of that name.")

    @promise("test_it_is_active")
    def test_specs_can_be_pickled(self) -> None:
        """They come back equal, since they travel to workers with what holds them."""
        for one in self.provided:
            fix = f"Return a plain {type(one.spec).__mro__[-2].__name__} of cornstarch_core.specs, made of strings."
            try:
                again = pickle.loads(pickle.dumps(one.spec))
            except Exception as error:  # pickle raises all kinds
                fail(f"{self.plugin}: {one.kind} {one.spec.name!r} can't be pickled: {say(error)}.", fix)
            if again != one.spec:
                fail(f"{self.plugin}: {one.kind} {one.spec.name!r} comes back from pickle as another.", fix)

    @promise("test_it_is_active")
    def test_auto_mappings_stay_as_they_were(self) -> None:
        """Neither activating it nor importing its targets registers anything with transformers' auto classes."""
        changed: list[str] = ask("changed_mappings", [self.plugin])
        if changed:
            fail(
                f"{self.plugin}: importing it changes {', '.join(changed)} of transformers, for all of the process.",
                "Take calls such as AutoConfig.register out: EncoderSpec.classes and EncoderSpec.build are how "
                "Cornstarch finds and loads an encoder.",
            )


def ask(function: str, *arguments: Any) -> Any:
    """Run a function of :mod:`.probe` in a new process that sees the same folders as this one."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from cornstarch_core.testing import probe; import json"
    call = "probe.main(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; {call}", json.dumps([function, *arguments])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(
            f"a process that activates the plugin ended with exit code {done.returncode}:\n{done.stderr[-2000:]}",
            "Let the plugin's module, and what its specs name, be imported in any process.",
        )
    return json.loads(done.stdout.splitlines()[-1])


def _repair(info: PluginInfo) -> str:
    fixes = {
        "blocked": "Unset the environment variable, or remove the other copy, while its tests run.",
        "incompatible": "Widen its requirement on cornstarch-core, or install a version of the core that it allows.",
    }
    return fixes.get(info.state, f"Repair that; the traceback is shown by: cornstarch plugins doctor {info.id}")


def _problem(field: str, target: str) -> tuple[str, str] | None:
    """What is wrong with a target, and what to do."""
    try:
        found = resolve(target)
    except PluginError as error:
        return f"{error}.", "Write 'package.module:attribute' as it can be imported from there."
    if field != "classes":
        return None if callable(found) else (f"{target!r} can't be called.", "Name a function or a class.")
    home = f"{getattr(found, '__module__', '?')}:{getattr(found, '__qualname__', '?')}"
    if not isinstance(found, type):
        return f"{target!r} is no class.", "Name the encoder's."
    # an encoder is matched by where its class is defined, so that another path to it would never match
    return None if home == target else (f"{target!r} is defined as {home!r}.", "Write that.")


def _where(one: Provided, field: str) -> str:
    return f"{one.plugin}: {type(one.spec).__name__} {one.spec.name!r}: {field}"


def _difference(here: list[Any], there: Any) -> str:
    if isinstance(there, str):
        return f"fails ({there})"
    names, others = ([f"{kind} {spec['name']!r}" for kind, spec in specs] for specs in (here, there))
    missing, new = ([name for name in one if name not in two] for one, two in ((names, others), (others, names)))
    if not missing and not new:
        return "registers the same names with other fields"
    return " and ".join(f"{verb} {', '.join(found)}" for verb, found in (("lacks", missing), ("adds", new)) if found)
