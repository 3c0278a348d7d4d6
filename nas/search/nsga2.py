"""NSGA-II (Deb et al. 2002) through Optuna: fewer milliseconds against higher accuracy."""

import logging
from pathlib import Path

import numpy as np
import optuna
from sqlalchemy.exc import SQLAlchemyError

from nas.search.searcher import Result
from search_spaces import Space
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["Nsga2"]

POPULATION = 20


class Nsga2:
    """Optuna's NSGA-II over the space's code.

    Every proposal is a function of the seed and the told trials alone: a fresh sampler, seeded by the trial's number,
    looks at a study rebuilt from the SQLite file. That file gets a trial in one transaction, when it is told, so a kill
    loses the trial in flight and nothing else.
    """

    def __init__(self, space: Space, storage: Path, seed: int, population: int = POPULATION) -> None:
        """Open or make the SQLite file `storage`.

        Raises:
            InputError: the file is no Optuna storage.
        """
        optuna.logging.set_verbosity(logging.WARNING)
        self.space, self.seed, self.population, self._storage = space, seed, population, storage
        try:
            self._stored = optuna.create_study(
                storage=f"sqlite:///{storage}",
                study_name="search",
                directions=["minimize", "maximize"],
                load_if_exists=True,
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(
                f"{storage} cannot be used as an Optuna storage ({reason}); free the space, or restore the file"
            ) from error
        self._trials = self._stored.get_trials()
        self._complete = [trial for trial in self._trials if trial.state == optuna.trial.TrialState.COMPLETE]
        self._study = self._stored
        self._asked: optuna.Trial | None = None
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            choice.name: optuna.distributions.IntDistribution(0, len(choice.values) - 1) for choice in space.choices
        }

    def ask(self) -> Arch:
        """The next network; repeats are possible, as in every genetic algorithm."""
        number = len(self._trials)
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        sampler = optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)
        self._study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        self._study.add_trials(self._complete)  # pruned trials never enter the population, and there may be many
        if (
            len(self._complete) < self.population
        ):  # the first generation: of every cost, where Optuna's would be uniform
            first = self.space.encode(self.space.spread(np.random.default_rng([self.seed, number])))
            names = [choice.name for choice in self.space.choices]
            self._study.enqueue_trial(dict(zip(names, map(int, first), strict=True)))
        self._asked = self._study.ask(self._distributions)
        code = [self._asked.params[choice.name] for choice in self.space.choices]
        return self.space.decode(self.space.repair(np.array(code)))

    def tell(self, arch: Arch, result: Result) -> None:
        """Record the asked trial; one that was passed over is pruned, which keeps it out of the population."""
        assert self._asked is not None, "ask before tell"
        self._asked.set_user_attr("arch", arch.id)
        self._asked.set_user_attr("ms", result.ms)
        if result.accuracy is None:
            self._study.tell(self._asked, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(self._asked, [result.ms, result.accuracy])
        trial = self._study.get_trials()[-1]
        try:
            self._stored.add_trial(trial)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"cannot write {self._storage}: {reason}; free the space and add --resume") from error
        self._trials.append(trial)
        if trial.state == optuna.trial.TrialState.COMPLETE:
            self._complete.append(trial)
        self._asked = None

    @property
    def told(self) -> int:
        """Number of trials in the storage."""
        return len(self._trials)

    @property
    def passed(self) -> int:
        """Number of pruned trials since the last complete one."""
        states = [trial.state for trial in reversed(self._trials)]
        pruned = [state == optuna.trial.TrialState.PRUNED for state in states]
        return pruned.index(False) if False in pruned else len(pruned)
