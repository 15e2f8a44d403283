"""The test class with the checks of a plugin package, independent of what the plugin registers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ..plugins import PluginInfo, Registration, registry
from ..plugins.activation import spec_types
from ..plugins.discovery import normalise
from ..plugins.doctor import registered_by, spec_problems
from . import probe
from .promises import Promises, fail, promise, say

__all__ = ["PluginConformance", "ask"]


class PluginConformance(Promises):
    """The checks of a plugin package. Inherit from this class in a test class that pytest collects.

    Attributes:
        distribution: name of the installed distribution, for example ``"cornstarch-series"``.
        heavy: names of modules that must not be imported when the plugin is activated.

    One check starts a process that imports transformers, which takes a few seconds.

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
        """The id of the plugin: the normalised name of its distribution."""
        return normalise(self.distribution)

    @property
    def registrations(self) -> list[Registration[Any]]:
        """The registrations of the plugin."""
        return registered_by(self.plugin)

    # --- checks -------------------------------------------------------------------------------------------------------

    @promise()
    def test_it_is_active(self) -> None:
        """The plugin is installed, found by its entry point, and follows the rules for hooks."""
        registry().activate()
        infos = registry().plugins()  # if two copies are installed, the one that Python imports comes first
        info = next((info for info in infos if info.id == self.plugin), None)
        if info is None:
            others = ", ".join(info.id for info in infos)
            fail(
                f"{self.plugin}: the plugin is not installed here; installed are {others or 'none'}.",
                'Give its pyproject.toml an entry point in [project.entry-points."cornstarch.plugins"], and install '
                "it: pip install -e .",
            )
        if info.state != "active":
            fail(f"{info.explain()}.", _repair(info))

    @promise("test_it_is_active")
    def test_importing_it_is_light(self) -> None:
        """Activating the plugin imports neither torch, transformers nor numpy, in any process that uses a plugin."""
        found: dict[str, str] = ask("heavy_imports", self.plugin, self.heavy)
        if found:
            shown = ", ".join(f"{name} ({place})" for name, place in found.items())
            fail(
                f"{self.plugin}: activating it imports {shown}, in every process that uses any plugin.",
                "Keep the module of the entry point, and the __init__.py of the packages above it, free of them: name "
                "classes in the specs as 'package.module:Class', and import what they need in the modules of these "
                "classes.",
            )

    @promise("test_it_is_active")
    def test_activating_it_again_gives_the_same_specs(self) -> None:
        """The plugin registers the same specs in a spawned worker, and when it is activated again."""
        here = probe.plain([(one.kind, one.spec) for one in self.registrations])
        for time, there in zip(("", " a second time"), self._activated_in_a_worker(), strict=True):
            if there != here:
                fail(
                    f"{self.plugin}: activated{time} in a spawned worker, it {_difference(here, there)}.",
                    "Let the hooks return new lists that depend only on the installed package: not a list that they "
                    "append to, and nothing of the process or the environment.",
                )

    def _activated_in_a_worker(self) -> list[list[Any] | str]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(probe.activate_twice, self.plugin).result()
            except BrokenProcessPool:
                fail(
                    f"{self.plugin}: a spawned worker that activates it dies.",
                    "Make sure that the plugin's module can be imported in any process; try python -c 'from "
                    "cornstarch_core.plugins import registry; registry().activate()'.",
                )

    @promise("test_it_is_active")
    def test_every_target_resolves(self) -> None:
        """Everything that the specs name can be imported, and classes are named by the module that defines them."""
        for one in self.registrations:
            for problem in spec_problems(one):
                where = f"{self.plugin}: {type(one.spec).__name__} {one.spec.name!r}: {problem.field}"
                fail(f"{where}: {problem.text}.", problem.fix)

    @promise("test_it_is_active")
    def test_specs_can_be_pickled(self) -> None:
        """Pickled specs load equal, so that they can be sent to workers."""
        for one in self.registrations:
            fix = f"Return a plain {spec_types()[one.kind].__name__} of cornstarch_core.specs, made of strings."
            try:
                again = pickle.loads(pickle.dumps(one.spec))
            except Exception as error:  # pickle raises errors of all types
                fail(f"{self.plugin}: {one.kind} {one.spec.name!r} can't be pickled: {say(error)}.", fix)
            if again != one.spec:
                fail(f"{self.plugin}: {one.kind} {one.spec.name!r} is another one after pickling.", fix)

    @promise("test_it_is_active")
    def test_auto_mappings_stay_as_they_were(self) -> None:
        """The plugin registers nothing with transformers' auto classes, also when its targets are imported."""
        changed: list[str] = ask("changed_mappings", [self.plugin])
        if changed:
            fail(
                f"{self.plugin}: importing it changes {', '.join(changed)} of transformers, in the whole process.",
                "Remove calls such as AutoConfig.register: Cornstarch finds an encoder by EncoderSpec.classes, and "
                "makes it by EncoderInterface.build.",
            )


def ask(function: str, *arguments: object) -> Any:
    """Run a function of :mod:`.probe` in a new process with the same ``sys.path``."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from cornstarch_core.testing import probe; import json"
    call = "probe.main(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; {call}", json.dumps([function, *arguments])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(
            f"a process that activates the plugin ended with exit code {done.returncode}:\n{done.stderr[-2000:]}",
            "Make sure that the plugin's module, and what its specs name, can be imported in any process.",
        )
    return json.loads(done.stdout.splitlines()[-1])


def _repair(info: PluginInfo) -> str:
    fixes = {
        "blocked": "Unset the environment variable, or remove the other copy, while the tests run.",
        "incompatible": "Widen its requirement on cornstarch-core, or install a version of the core that it allows.",
    }
    return fixes.get(info.state, f"Fix that; this command shows the traceback: cornstarch plugins doctor {info.id}")


def _difference(here: list[Any], there: list[Any] | str) -> str:
    if isinstance(there, str):
        return f"fails ({there})"
    names, others = ([f"{kind} {spec['name']!r}" for kind, spec in specs] for specs in (here, there))
    missing, new = ([name for name in one if name not in two] for one, two in ((names, others), (others, names)))
    if not missing and not new:
        return "registers the same names with other fields"
    return " and ".join(f"{verb} {', '.join(found)}" for verb, found in (("lacks", missing), ("adds", new)) if found)
