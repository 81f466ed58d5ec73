import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from diffprobe import __version__
from diffprobe.cli import main as cli
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import Registry

VERB = """\
GROUP = "runs"
HELP = "does it"
def add_arguments(parser):
    parser.add_argument("what")
def run(args):
    from diffprobe.core.errors import ShardError
    if args.what == "fail":
        raise ShardError("no shard.", "looked for: *.tar", fix="make one")
    if args.what == "write":
        open("/proc/x/y", "w")
    if args.what == "stop":
        raise KeyboardInterrupt
    if args.what == "end":
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
    if args.what == "hide":
        try:
            raise KeyboardInterrupt
        finally:
            None.reset()
    if args.what == "fault":
        raise RuntimeError("tensor a (3) must match\\nat non-singleton dimension 0")
    if args.what == "memory":
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB")
    if args.what == "pipe":
        raise BrokenPipeError(32, "Broken pipe")
    print("done", args.what)
    return 1 if args.what == "no" else 0
"""


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line of one verb."""
    folder = tmp_path / "verbs_under_test"
    folder.mkdir()
    (folder / "__init__.py").write_text('SHARED = ("main",)')
    (folder / "do_it.py").write_text(VERB)
    (folder / "main.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "VERBS", Registry(folder.name, "verb"))
    for name in [name for name in sys.modules if name.startswith("verbs_under_test")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("verbs")
class TestVerbs:
    def test_a_verb_runs_and_its_status_is_returned(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "yes"]) == 0
        assert cli.main(["do-it", "no"]) == 1
        assert capsys.readouterr().out == "done yes\ndone no\n"

    def test_errors_are_printed_to_stderr_with_their_class(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "fail"]) == 2
        out, err = capsys.readouterr()
        assert (out, err) == ("", "ShardError: no shard.\n  looked for: *.tar\n  fix: make one\n")

    def test_a_system_error_is_not_a_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "write"]) == 2
        out, err = capsys.readouterr()
        first, second = err.splitlines()
        assert out == "" and first == "FileNotFoundError: [Errno 2] No such file or directory: '/proc/x/y'"
        assert "--traceback" in second
        with pytest.raises(FileNotFoundError):
            cli.main(["do-it", "write", "--traceback"])

    def test_traceback_shows_where(self) -> None:
        with pytest.raises(ValueError, match="no shard"):
            cli.main(["do-it", "fail", "--traceback"])

    def test_an_interrupt_is_not_a_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "stop"]) == 130
        assert capsys.readouterr().err == "interrupted.\n"  # nothing is promised

    @pytest.mark.parametrize("stays", ["finished rows are on disk", {"stop": "finished rows are on disk"}])
    def test_a_stopped_verb_says_what_it_left(
        self, stays: str | dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules[cli._load("do-it").__name__], "STAYS", stays, raising=False)
        assert cli.main(["do-it", "stop"]) == 130
        assert capsys.readouterr().err == "interrupted; finished rows are on disk; run the command again to continue.\n"
        assert cli.what_stays(["do-it", "end"]) == (stays if isinstance(stays, str) else "")

    def test_sigterm_is_one_line_and_its_own_status(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "end"]) == 143
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("terminated (SIGTERM)") and len(err.splitlines()) == 1

    def test_an_error_of_cleaning_up_does_not_hide_that_it_was_interrupted(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["do-it", "hide"]) == 130
        assert capsys.readouterr().err.startswith("interrupted")

    def test_a_fault_of_diffprobe_is_one_line_and_where_to_look(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "fault"]) == 70
        first, second = capsys.readouterr().err.splitlines()
        assert first == "RuntimeError: tensor a (3) must match"
        assert "fault of diffprobe" in second and "--traceback" in second
        with pytest.raises(RuntimeError, match="singleton"):
            cli.main(["do-it", "fault", "--traceback"])

    def test_exhausted_memory_is_not_a_fault(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-it", "memory"]) == 2
        assert "OutOfMemoryError: CUDA out of memory" in (err := capsys.readouterr().err) and "batch_size" in err

    def test_a_pipe_that_is_not_the_output_is_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with open(os.devnull, "w") as output, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            assert cli.main(["do-it", "pipe"]) == 2
        assert "BrokenPipeError: [Errno 32] Broken pipe" in capsys.readouterr().err

    def test_several_processes_are_refused_on_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        for rank in ("0", "1"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SLURM_PROCID", rank)
                patch.setenv("SLURM_STEP_NUM_TASKS", "2")
                assert cli.main(["do-it", "yes"]) == 2
            assert "diffprobe do-it runs in one process, but 2 processes" in capsys.readouterr().err

    def test_help_lists_the_verbs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main([]) == 0
        assert "\nruns:\n  do-it  does it\n" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="0"):
            cli.main(["do-it", "--help"])
        assert "usage: diffprobe do-it" in capsys.readouterr().out

    def test_an_unknown_verb_names_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["do-iy"]) == 2
        assert "'do-iy' (nearest: do-it). Verbs: do-it" in capsys.readouterr().err

    def test_a_latin_1_terminal_is_not_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
        assert cli.main(["do-it", "‡ 茶"]) == 0
        sys.stdout.flush()
        assert written.getvalue() == b"done ^ ?\n"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "diffprobe", *args], capture_output=True, text=True)


def test_the_module_is_the_command() -> None:
    assert run("--version").stdout == f"diffprobe {__version__}\n"


def test_help_fits_a_terminal_and_loads_nothing_heavy() -> None:
    """80 columns x 42 lines; no library that takes long to import."""
    code = (
        "import sys; from diffprobe.cli.main import main; status = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'hydra', 'yaml', 'rich', 'lightning', 'diffusers', 'transformers', 'matplotlib'}\n"
        "print(status, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "DIFFPROBE_SHAPE_CHECKS": "0"}  # they import numpy
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert done.stderr == "0 []\n"
    assert max(map(len, lines)) <= 80 and len(lines) <= 42
    groups = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == [group for group in cli.GROUPS if group in groups]


def test_errors_of_the_real_command_exit_with_2() -> None:
    done = run("config", "experiment=emoji/nothing")
    assert done.returncode == 2 and done.stderr.startswith(f"{ConfigError.__name__}: unknown experiment")
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m diffprobe config --keys | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.endswith("\n0\n") and "Traceback" not in done.stderr


def test_a_warning_of_ours_is_one_line(monkeypatch, capsys):
    from diffprobe.cli import doctor

    def run(args):
        warnings.warn_explicit("few samples\nindeed", UserWarning, doctor.__file__, 3)
        warnings.warn_explicit("of a library", UserWarning, "/elsewhere/library.py", 3)
        return 0

    monkeypatch.setattr(doctor, "run", run)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *found: print(warnings.formatwarning(*found[:4]), end=""))
        assert cli.main(["doctor"]) == 0
    ours, other = capsys.readouterr().out.splitlines()
    assert ours == "warning: few samples indeed" and other.startswith("/elsewhere/library.py:3: UserWarning")


def test_sub_verbs_that_say_what_stays_exist(capsys: pytest.CaptureFixture[str]) -> None:
    found = {verb: getattr(cli._load(verb), "STAYS", {}) for verb in cli.verbs()}
    for verb, stays in found.items():
        for word in stays if isinstance(stays, dict) else ():
            with pytest.raises(SystemExit, match="0"):
                cli.main([verb, word, "--help"])
    assert cli.what_stays(["bench", "--traceback", "dictionaries"]) and not cli.what_stays(["bench", "plan"])
    assert (
        cli.what_stays(["train", "experiment=a"]) and not cli.what_stays(["table"]) and not cli.what_stays(["--help"])
    )
