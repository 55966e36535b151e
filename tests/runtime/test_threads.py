import subprocess
import sys


def test_torch_and_child_processes_use_the_number_of_threads() -> None:
    program = (
        "import os, torch; from workflow_lib.runtime.threads import set_threads\n"
        "set_threads(2); print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])\n"
        "set_threads(1); print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2", "1", "1"]
