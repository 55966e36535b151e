"""The trials of a study in forks: each suggestion follows from the files before it, as in the jobs of the rules.

The files of this study are in a folder of the pack. The jobs of the rules hand them out, or write their own, with the
same content, and find the trainings in the store. When all trials have ended, the run with the best settings follows.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import ready, tuning
from workflow_lib.packs import gpu
from workflow_lib.packs.forks import Task
from workflow_lib.packs.job import Job
from workflow_lib.results import layout as results_layout

if TYPE_CHECKING:
    from workflow_lib.config.experiment import Tune

logger = logging.getLogger(__name__)


class Trials:
    """The suggestions and trials of a study, in the order that its window allows."""

    def __init__(self, job: Job, tune: Tune, data: Path, results: Path, then: Callable[[Path], Task]) -> None:
        """Go on with a study whose files so far are in ``results``; ``then`` returns what follows its best trial."""
        self._job, self._data, self._results, self._then = job, data, results, then
        self._folder = folder = job.prepared / ready.STUDY
        self._trials, self._window = tune.trials, tune.window
        self._has_best = False
        self.codes: dict[str, int] = {}  # exit code of each trial, by its number
        self._asked: set[int] = set()  # suggestions that have been started or made
        self._started: set[int] = set()  # trials
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt at the pack
        folder.mkdir(parents=True)
        for path in (*results.glob("suggest-*.json"), *results.glob("trial-*.json")):
            shutil.copy(path, folder)

    def next(self) -> Iterator[Task]:
        """Yield the tasks that can begin now: trials that are suggested, then the next suggestion."""
        for number in range(self._trials):
            if not tuning.suggestion_path(self._folder, number).exists():
                break
            self._asked.add(number)
            if number not in self._started:
                self._started.add(number)
                if not tuning.result_path(self._folder, number).exists():
                    yield self._trial(number)
        if not self._has_best and all(map(self._is_known, range(self._trials))):
            self._has_best = True
            log = self._job.logs / "best.log"
            yield Task("best", self._select, log, self._chosen)
        number = len(self._asked)
        earliest = number - self._window  # the newest result that the suggestion may use
        is_possible = number == 0 or tuning.suggestion_path(self._folder, number - 1).exists()
        if number < self._trials and is_possible and self._is_known(earliest):
            self._asked.add(number)
            yield self._task(f"suggestion {number}", partial(self._suggest, number), None)

    def _is_known(self, number: int) -> bool:
        return number < 0 or tuning.result_path(self._folder, number).exists()

    def _trial(self, number: int, *, is_alone: bool = False) -> Task:
        """Return the task of a trial. Its settings are its own, so its need of a GPU's memory is measured by itself."""
        kind = "" if self._job.memory is None else f"trial {number}"
        task = self._task(f"trial {number}", partial(self._train, number), number)
        ended = partial(self._out_of_memory, number, task.ended) if kind and not is_alone else task.ended
        return replace(task, kind=kind, is_alone=is_alone, ended=ended)

    def _out_of_memory(self, number: int, ended: Callable[[int], Iterable[Task]], code: int) -> Iterable[Task]:
        if code != gpu.NoMemory.exit_code:
            return ended(code)
        logger.info("trial %d: ran out of the GPU's memory; it goes on alone", number)
        return (self._trial(number, is_alone=True),)

    def _chosen(self, code: int) -> Iterator[Task]:
        if code == 0:
            yield self._then(results_layout.best_file(self._folder))

    def _task(self, name: str, call: Callable[[], None], trial: int | None) -> Task:
        return Task(name, call, self._job.logs / f"{name.replace(' ', '-')}.log", partial(self._ended, name, trial))

    def _ended(self, name: str, trial: int | None, code: int) -> Iterator[Task]:
        if code != 0:
            logger.info("%s: exit code %d; its own job goes on with it", name, code)
        if trial is not None:
            self.codes[str(trial)] = code
        yield from self.next()

    def _suggest(self, number: int) -> None:
        output = tuning.suggestion_path(self._folder, number)
        tuning.suggest(self._job.experiment, number, self._folder, self._job.work, output)
        earlier = [tuning.suggestion_path(self._folder, number - 1)] if number > 0 else []
        newest = number - self._window
        earlier += [tuning.result_path(self._folder, newest)] if newest >= 0 else []
        options = {"--number": f"{number:04d}", "--tune-dir": self._results}
        self._announce("suggest", options, output, {self._results / path.name: path for path in earlier})

    def _train(self, number: int) -> None:
        suggestion, output = tuning.suggestion_path(self._folder, number), tuning.result_path(self._folder, number)
        requests: list[Path] = []
        with gpu.measured(self._job.memory, f"trial {number}"):
            tuning.trial(
                self._job.experiment,
                suggestion,
                data=self._data,
                work=self._job.work,
                output=output,
                deadline_minutes=self._job.minutes_left(),
                note=requests.append,
            )
        options = {"--suggestion": self._results / suggestion.name, "--data": self._data}
        inputs = {self._results / suggestion.name: suggestion, self._data: self._data}
        self._announce("trial", options, output, inputs, next(iter(requests), None))

    def _select(self) -> None:
        output = results_layout.best_file(self._folder)
        tuning.best(self._job.experiment, self._folder, self._job.work, output)
        results = [tuning.result_path(self._folder, number) for number in range(self._trials)]
        options = {"--tune-dir": self._results}
        self._announce("best", options, output, {self._results / path.name: path for path in results})

    def _announce(
        self,
        verb: str,
        options: Mapping[str, object],
        file: Path,
        inputs: Mapping[Path, Path],
        requests: Path | None = None,
    ) -> None:
        """Write the ticket of a file of the study."""
        said = "computed in a pack"
        output, files = self._results / file.name, {file.name: file}
        ready.write(verb, options, output, inputs=inputs, files=files, requests=requests, said=said)
