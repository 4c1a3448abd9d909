"""Resident memory of models by how they are kept: loaded, shared, unloaded; of a random model of 120 M parameters.

At each stage what is resident, and the most that was since the process began.

Each line runs in a process of its own: what one left behind would stand in the next one's figure.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import arguments, report, table

WIDTHS = (160, 320, 640)


def write_models(folder: Path) -> None:
    """Two Stable Diffusion folders over one autoencoder and text encoder; their U-Nets are random."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from pipelines.builtin.vocabulary import MAX_TOKENS, write_tokenizer

    tokenizer = write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=MAX_TOKENS,
    )
    vae = AutoencoderKL(
        block_out_channels=(64, 128, 256, 256),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    encoder = CLIPTextModel(text)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=WIDTHS,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            layers_per_block=1,
            cross_attention_dim=512,
            attention_head_dim=8,
        )
        scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
        pipeline = StableDiffusionPipeline(
            vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
        )
        pipeline.save_pretrained(folder / name)


def measure(policy: str, folder: Path) -> None:
    """Print the megabytes at each stage of one policy, tab-separated names and numbers."""
    import gc

    import pipelines.families.stable_diffusion  # noqa: F401  the libraries' own memory belongs to the beginning
    from pipelines.catalog import Catalog
    from pipelines.composition import And, Prompt
    from pipelines.entry import Entry
    from pipelines.params import SamplingParams
    from pipelines.residency import MemoryPolicy
    from pipelines.sampler import sample

    def tell(stage: str) -> None:
        gc.collect()
        # Not getrusage: its peak begins with what the parent process held when it started this one.
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (int(lines[key].split()[0]) / 2**10 for key in ("VmRSS", "VmHWM"))
        print(f"{stage}\t{now:.0f}\t{peak:.0f}", flush=True)

    def run(*names: str) -> None:
        terms = tuple(Prompt("a red circle", name) for name in names)
        sample(And(terms), SamplingParams(steps=2, seed=0), {name: catalog.get(name) for name in names})

    dtype = "bfloat16" if policy == "bfloat16" else "float32"
    entries = [Entry(name, folder / name, dtype=dtype) for name in ("one", "two")]
    idle = MemoryPolicy(idle_s=1e-9)
    catalog = Catalog(entries, "cpu", idle)
    tell("before")
    if policy == "two that share":
        catalog.get("one")
        catalog.get("two")
        tell("loaded")
        run("one", "two")
    else:
        catalog.get("one")
        tell("loaded")
        run("one")
    tell("after a run")
    catalog.unload_idle()
    tell("unloaded")


def main() -> None:
    """Measure each policy in a process of its own, print, write."""
    if len(sys.argv) == 4 and sys.argv[1] == "--measure":
        measure(sys.argv[2], Path(sys.argv[3]))
        return
    given = arguments("models", __doc__)
    numbers: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for policy in ("float32", "bfloat16", "two that share"):
            command = [sys.executable, "-m", "benchmarks.models", "--measure", policy, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            stages = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
            numbers[policy] = {}
            for stage, resident, peak in stages:
                numbers[policy] |= {stage: float(resident), f"peak, {stage}": float(peak)}
    columns = ["before", "loaded", "peak, loaded", "after a run", "peak, after a run", "unloaded"]
    rows = [[policy, *(f"{stages[c]:.0f}" for c in columns)] for policy, stages in numbers.items()]
    report("Resident memory in MB, a random model of 120 M parameters", table(["", *columns], rows), numbers, given.out)


if __name__ == "__main__":
    main()
