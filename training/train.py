"""Command line: trains a model folder from scratch, or goes on from one.

Each stage leaves a file in the work folder and is skipped when that file is there, so a run that was cut off goes on
when the same command is given again. `python -m training.train --help` lists the settings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline

from .captions import vocabulary
from .compose import FREE_PLACEMENT, Composer, Placement, Sprites
from .data import load_pictures, object_names
from .evaluate import evaluate
from .export import export
from .flow import FlowConfig, FlowTrainer
from .latents import PatchLatents
from .models import ModelSizes, build_model, load_model
from .samples import save_grid
from .vae import VaeConfig, train_decoder, train_encoder

STAGES = ("latents", "transformer", "decoder", "encoder", "export", "samples", "evaluate")


@dataclass
class Run:
    """One run: its command line, device, objects and the pipeline that the stages work on."""

    args: argparse.Namespace
    device: torch.device
    nouns: list[str]
    sprites: Sprites
    pipeline: FluxPipeline

    @classmethod
    def open(cls, args: argparse.Namespace) -> Run:
        """Fetch the pictures and load or build the networks."""
        args.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        nouns = object_names(args.objects)
        sprites = Sprites(load_pictures(nouns, args.work / "packages"))
        if args.resume_from:
            pipeline = load_model(args.resume_from)
        else:
            sizes = ModelSizes(args.width, args.double_blocks, args.single_blocks, args.text_width)
            pipeline = build_model(sizes, vocabulary(nouns), args.side)
        device = torch.device(args.device)
        return cls(args, device, nouns, sprites, pipeline.to(device))

    def composer(self, placement: Placement, seed: int) -> Composer:
        """A composer of this run's objects, each as often as the others or more often when emphasised."""
        weights = [self.args.emphasis if noun in self.args.emphasise else 1.0 for noun in self.nouns]
        return Composer(self.sprites, self.nouns, placement, seed, weights)

    @property
    def placement(self) -> Placement:
        """Where the transformer's training objects stand."""
        return Placement(side=self.args.side, jitter=self.args.jitter, step=self.args.step)

    @property
    def free_placement(self) -> Placement:
        """Any offset and size, for the autoencoder."""
        return Placement(**{**vars(FREE_PLACEMENT), "side": self.args.side})

    def latents(self) -> PatchLatents:
        """The latent transform, fitted when this run has none yet."""
        path = self.args.work / "latents.safetensors"
        if not path.exists():
            pictures = self.composer(self.free_placement, self.args.seed).batch(480).pictures
            if self.args.resume_from:
                PatchLatents.fit_to_encoder(self.pipeline.vae.cpu(), pictures).save(path)
            else:
                PatchLatents.fit(pictures).save(path)
        return PatchLatents.load(path)

    def transformer(self) -> None:
        """Train the transformer and the text encoders, or load what an earlier run trained."""
        args = self.args
        checkpoint = args.work / "transformer.pt"
        config = FlowConfig(
            samples=args.samples,
            minutes=args.minutes,
            batch=args.batch,
            muon_lr=args.muon_lr,
            adamw_lr=args.adamw_lr,
            hold=args.hold,
            compile=args.compile,
            seed=args.seed,
        )
        trainer = FlowTrainer(self.pipeline, config, self.device)
        if checkpoint.exists():
            trainer.restore(checkpoint)
        if trainer.progress < 1 and "transformer" in args.stages:
            trainer.run(self.composer(self.placement, args.seed), self.latents(), checkpoint, log=say)
        self.pipeline = trainer.finish()

    def autoencoder(self) -> None:
        """Train the decoder and the encoder, or load what an earlier run trained."""
        args, vae = self.args, self.pipeline.vae
        free = self.composer(self.free_placement, args.seed + 1)
        grid = self.composer(self.placement, args.seed + 2)
        for stage, part, train in (
            ("decoder", vae.decoder, train_decoder),
            ("encoder", vae.encoder, train_encoder),
        ):
            path = args.work / f"{stage}.pt"
            if path.exists():
                part.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
            elif stage in args.stages:
                minutes, rate = getattr(args, f"{stage}_minutes"), getattr(args, f"{stage}_lr")
                config = VaeConfig(minutes=minutes, lr=rate)
                train(vae, self.latents(), [grid, free], config, say)
                torch.save(part.state_dict(), path)


def say(line: str) -> None:
    """Print one progress line at once."""
    print(line, flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=Path("training/work"), help="folder of downloads, checkpoints and the result")
    add("--resume-from", type=Path, help="model folder to go on from; fresh weights when left out")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to do; the rest is only loaded")
    add("--objects", default="embedded", help='"embedded" (50), "all" (84) or names separated by commas')
    add("--emphasise", nargs="*", default=[], metavar="OBJECT", help="objects to draw more often")
    add("--emphasis", type=float, default=2.0, help="how much more often")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="CPU threads; two in one process gain next to nothing")
    add("--seed", type=int, default=0)
    model = parser.add_argument_group("size of a model from scratch")
    add = model.add_argument
    add("--side", type=int, default=96, help="width and height of the pictures, a multiple of 16")
    add("--width", type=int, default=ModelSizes.width, help="transformer width, a multiple of 32")
    add("--double-blocks", type=int, default=ModelSizes.double_blocks)
    add("--single-blocks", type=int, default=ModelSizes.single_blocks)
    add("--text-width", type=int, default=ModelSizes.text_width)
    add = parser.add_argument_group("transformer").add_argument
    add("--samples", type=int, default=FlowConfig.samples, help="length of the run")
    add("--minutes", type=float, default=math.inf, help="length of the run, when that is shorter")
    add("--batch", type=int, default=FlowConfig.batch)
    add("--muon-lr", type=float, default=FlowConfig.muon_lr)
    add("--adamw-lr", type=float, default=FlowConfig.adamw_lr)
    add("--hold", type=float, default=FlowConfig.hold, help="share of the run before the linear decay to zero")
    add("--compile", action="store_true", help="compile the blocks; pays for runs of more than ten minutes")
    add("--jitter", type=int, default=Placement.jitter, help="largest shift of an object from the middle, pixels")
    add("--step", type=int, default=Placement.step, help="shifts are multiples of this many pixels")
    add = parser.add_argument_group("autoencoder").add_argument
    add("--decoder-minutes", type=float, default=15.0)
    add("--decoder-lr", type=float, default=VaeConfig.lr)
    add("--encoder-minutes", type=float, default=5.0)
    add("--encoder-lr", type=float, default=VaeConfig.lr)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the chosen stages."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run = Run.open(args)
    run.latents()
    run.transformer()
    run.autoencoder()
    model = args.work / "model"
    if "export" in args.stages:
        export(run.pipeline, model)
        say(f"model folder: {model}")
    if "samples" in args.stages:
        save_grid(load_model(model), run.nouns, args.side, model / "samples.png")
        say(f"samples: {model / 'samples.png'}")
    if "evaluate" in args.stages:
        figures = evaluate(load_model(model), run.nouns, run.sprites, run.latents(), run.placement)
        (args.work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        say(json.dumps({name: value for name, value in figures.items() if not isinstance(value, dict)}, indent=2))


if __name__ == "__main__":
    main()
