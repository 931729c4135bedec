"""What peers of ARLE do on the same GPU, on random weights. `scripts/bench/gpu` runs it.

Takes a job a line on standard input, {"name": .., "part": .., "limit": seconds, ..}, and answers each with a JSON object: its
name and figures, or {"name": .., "not_measured": reason}; the first object names the versions. A job is a process of its
own, so that neither an error nor memory reaches the next one; they share the imports only. Parts:

  linear, attention, jsd   torch's kernels                                             torch_kernels.py
  generate, train          transformers (and peft): sampling, a step after the rollout   torch_models.py
  trl                      TRL's DistillationTrainer: a whole step                       trl_steps.py

usage: scripts/peers/gpu.py [--device cuda] PART.. < JOBS        needs: torch; transformers for models; peft for LoRA; trl 1.16.0 for trl
"""
import argparse
import gc
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import time
import traceback

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1",
                  # The parent must not start CUDA: its children could not.
                  PYTORCH_NVML_BASED_CUDA_CHECK="1")

import torch

PARTS = {"linear": "torch_kernels", "attention": "torch_kernels", "jsd": "torch_kernels",
         "generate": "torch_models", "train": "torch_models", "trl": "trl_steps"}
PACKAGES = ["torch", "transformers", "peft", "trl", "accelerate", "triton"]


def versions():
    """Of the packages that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def figures(job, device):
    """What the job's module measures, or the reason why nothing is there."""
    try:
        module = importlib.import_module(PARTS[job["part"]])
        # cuDNN's attention, torch's first choice on Hopper, builds a plan for every new length.
        torch.backends.cuda.enable_cudnn_sdp(job.get("cudnn", False))
        return getattr(module, job["part"])(job, device)
    except torch.OutOfMemoryError as e:
        return {"not_measured": "out of memory: " + str(e).split(". ")[0]}
    except Exception as e:
        traceback.print_exc()
        return {"not_measured": f"{type(e).__name__}: {e}"[:300]}


def child(job, device):
    """Never returns. The alarm ends the process, whatever it does."""
    signal.alarm(max(1, int(job.get("limit", 0))) if job.get("limit") else 0)
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no result
    start = time.monotonic()
    result = {"name": job["name"], **figures(job, device)}
    result["wall_s"] = round(time.monotonic() - start, 2)
    os.write(out, (json.dumps(result) + "\n").encode())
    os._exit(0)


def run(job, device):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child(job, device)
    _, status = os.waitpid(pid, 0)
    if status == 0:
        return
    code = os.waitstatus_to_exitcode(status)
    why = f"more than {job.get('limit')} s" if code == -signal.SIGALRM else f"its process ended with {code}"
    print(json.dumps({"name": job["name"], "not_measured": why}), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("parts", nargs="+", choices=list(PARTS), metavar="PART", help="of the jobs that will come")
    a = p.parse_args()
    for module in sorted({PARTS[part] for part in a.parts}):
        try:
            importlib.import_module(module)  # its children start with it
        except ImportError:
            pass  # each of its jobs will say so
    gc.freeze()
    print(json.dumps(versions()), flush=True)
    for line in sys.stdin:
        run(json.loads(line), a.device)


if __name__ == "__main__":
    main()
