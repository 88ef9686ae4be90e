"""How a trainer is started on each group of cards, and what its end means."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pipeline.cards import Group, group
from workers import launching, ranks
from workers.launching import Launch, Outcome

LEFT = {"OMPI_COMM_WORLD_SIZE": "8", "PMIX_RANK": "1", "HLS_MODULE_ID": "7", "HABANA_VISIBLE_MODULES": "6,7", "TF_CONFIG": "{}"}


@pytest.mark.parametrize(
    ("text", "launcher", "expected"),
    [
        ("5", "horovod", {"HLS_MODULE_ID": "5"}),
        ("2,3", "horovod", {"HABANA_VISIBLE_MODULES": "2,3", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}),
        ("4,5,6,7", "horovod", {"HABANA_VISIBLE_MODULES": "4,5,6,7", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}),
        ("0,1,2,3,4,5,6,7", "strategy", {"HABANA_VISIBLE_MODULES": "0,1,2,3,4,5,6,7"}),
    ],
)
def test_the_environment_pins_the_cards_and_forgets_the_last_launch(
    text: str, launcher: launching.Launcher, expected: dict[str, str]
) -> None:
    launch = Launch(group("hpu", text), launcher)
    assert launching.environment_of(launch, {"PATH": "/bin", "TF_BF16_CONVERSION": "1", **LEFT}) == {"PATH": "/bin", **expected}


def test_other_devices_are_pinned_the_same_way() -> None:
    assert launching.environment_of(Launch(Group("cpu", (0, 1))), LEFT) == {"CUDA_VISIBLE_DEVICES": ""}
    assert launching.environment_of(Launch(Group("gpu", (2, 3))), LEFT) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert launching.pinning(Launch(Group("gpu", (2, 3))), 1) == {"CUDA_VISIBLE_DEVICES": "3"}


def test_one_card_is_the_trainer_itself(tmp_path: Path) -> None:
    arguments = launching.trainer(tmp_path, progress=tmp_path / "p", resume=True)
    command = launching.command_of(Launch(Group("hpu", (3,)), python="py", device_root=Path("/host")), arguments)
    assert command[:4] == ["py", "-m", "pipeline.training.fit", "--tied"]
    assert command[4:10] == ["--device", "hpu", "--ranks", "1", "--device-root", "/host"]
    assert command[10:] == ["--out", str(tmp_path), "--bf16", "auto", "--progress", str(tmp_path / "p"), "--resume"]


def test_several_cards_are_one_process_that_starts_the_ranks() -> None:
    command = launching.command_of(Launch(group("hpu", "2,3"), python="py"), ["--steps", "9"])
    own, _, trainer = " ".join(command).partition(" -- ")
    assert own == "py -m workers.ranks --device hpu --modules 2,3 --launcher horovod"
    assert trainer == "py -m pipeline.training.fit --tied --device hpu --ranks 2 --steps 9"


def test_horovod_is_left_to_mpirun() -> None:
    ((words, environment),) = ranks.commands(Launch(group("hpu", "0,1,2,3")), ["train"], {"PATH": "/bin"})
    assert " ".join(words[:2]) == "mpirun --allow-run-as-root"
    assert words[-4:] == ["-np", "4", "--merge-stderr-to-stdout", "train"]
    assert environment["HABANA_VISIBLE_MODULES"] == "0,1,2,3"


def test_a_rank_gets_its_share_of_the_vendors_machine() -> None:
    """As the vendor's own command has it for eight cards and 96 processors."""
    assert launching.mpirun(8, ["train"], processors=96) == [
        "mpirun",
        "--allow-run-as-root",
        "--bind-to",
        "core",
        "--map-by",
        "socket:PE=6",
        "-np",
        "8",
        "--merge-stderr-to-stdout",
        "train",
    ]
    assert "none" in launching.mpirun(2, ["train"], processors=4)


@pytest.mark.parametrize(("device", "variable", "own"), [("hpu", "HLS_MODULE_ID", ["4", "5"]), ("gpu", "CUDA_VISIBLE_DEVICES", ["4", "5"])])
def test_a_strategys_ranks_know_their_card_and_each_other(device: str, variable: str, own: list[str]) -> None:
    started = ranks.commands(Launch(group(device, "4,5"), "strategy"), ["train"], {})  # type: ignore[arg-type]
    clusters = [json.loads(environment["TF_CONFIG"]) for _, environment in started]
    assert [environment[variable] for _, environment in started] == own
    assert [one["task"] for one in clusters] == [{"type": "worker", "index": 0}, {"type": "worker", "index": 1}]
    assert clusters[0]["cluster"] == clusters[1]["cluster"]
    assert len(set(clusters[0]["cluster"]["worker"])) == 2


@pytest.mark.parametrize(
    ("code", "last", "state", "permanent", "said"),
    [
        (0, [], "done", False, ""),
        (75, ["noise"], "stopped", False, "goes on from its checkpoint"),
        (-signal.SIGTERM, [], "stopped", False, "before it had begun"),
        (143, [], "stopped", False, "before it had begun"),
        (-signal.SIGUSR1, [], "stopped", False, "before it had begun"),
        (2, ["noise", "There is no Gaudi card here: install the driver.", ""], "failed", True, "There is no Gaudi card here"),
        (1, ["Traceback", "ValueError: x"], "failed", False, "ValueError: x"),
        (1, [], "failed", False, "exit code 1"),
        (1, ["synStatus=8 Device acquire failed.", "RuntimeError"], "failed", False, "busy or gone"),
        (134, ["synStatus=8 Device acquire failed."], "failed", False, "busy or gone"),
        (134, ["Attempt to register an AllocatorFactory after call to GetAllocator()"], "failed", True, "before the Gaudi bridge"),
        (-signal.SIGABRT, ["F"], "failed", False, "cannot be initialised"),
        (1, ["ModuleNotFoundError: No module named 'tensorflow'"], "failed", True, "UNMASK_TRAIN_PYTHON"),
        (2, ["tensorflow-cpu is 2.15.1, and training needs exactly 2.15.0."], "failed", True, "2.15.1"),
        (1, ["tensorflow.python.framework.errors_impl.ResourceExhaustedError: {{"], "failed", True, "lower --pairs"),
        (-signal.SIGKILL, [], "failed", False, "killed"),
        (137, [], "failed", False, "killed"),
        (139, [], "failed", False, "native code"),
        (128 + signal.SIGUSR2, [], "failed", False, f"signal {int(signal.SIGUSR2)}"),
        (127, ["mpirun is not installed."], "failed", True, "mpirun"),
    ],
)
def test_an_end_is_one_sentence_and_says_whether_to_try_again(code: int, last: list[str], state: str, permanent: bool, said: str) -> None:
    outcome = launching.outcome_of(code, last)
    assert (outcome.state, outcome.permanent) == (state, permanent)
    assert said in outcome.sentence
    assert "\n" not in outcome.sentence
    assert isinstance(outcome, Outcome)
