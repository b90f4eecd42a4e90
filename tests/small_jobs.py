"""Runs that a launcher starts in processes of their own."""

import os
import signal
import subprocess

import psutil
import yaml

WAIT = 900  # seconds that something may take on a busy machine


def write_recipe(path, settings):
    """A recipe of dotted keys."""
    tree: dict = {}
    for key, value in settings.items():
        place = tree
        *sections, name = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def obey_interrupts():
    """A shell starts what runs in its background with interrupts ignored; tests that send one must not inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Job:
    """A launcher that runs, with all that it says."""

    def __init__(self, command, log, **environment):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment
            )

    def ranks(self):
        """The processes that train, by rank."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "RANK" in (environment := child.environ()):
                    found[int(environment["RANK"])] = child
            except psutil.Error:
                continue
        return found

    def wait(self):
        """Exit status, and what was said on one line."""
        try:
            return self.process.wait(WAIT), self.said()
        finally:
            self.end()

    def said(self):
        return " ".join(self.log.read_text().split())

    def end(self):
        """Kill it, with the processes that it started, if it has not ended."""
        if self.process.poll() is None:
            for one in psutil.Process(self.process.pid).children(recursive=True):
                one.kill()
            self.process.kill()
            self.process.wait()
