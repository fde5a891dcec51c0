"""The cases of tools/bench/peers.py: what both sides compute, at which size.

A case has three ways to the same numbers, `ours()`, `eager()` and `compile()`: each gives a function that runs
once and returns when the result is there, as float32 numpy. Weights are drawn by torch and loaded by vdit
through the same weight maps that load public checkpoints.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from case import DTYPE, GPU, SCAN, Case, Run, no_grad, numpy_of, run_jax, to_torch

from vdit.data.patches import unpatchify
from vdit.diffusion import Guidance
from vdit.diffusion.schedules import Flow
from vdit.dist.mesh import compiler_options
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset
from vdit.models.network import Network
from vdit.models.text import T5Config, make_encoder, t5_preset, t5_text
from vdit.models.vae import VAE
from vdit.models.vae import preset as vae_preset
from vdit.pretrained import dit as dit_maps
from vdit.pretrained import t5, wan, wan_vae
from vdit.pretrained.model import one_device
from vdit.samplers import Grid, make
from vdit.sampling.canvas import Canvas, Prompts, blank, canvas_tokens, dense_rows
from vdit.sampling.config import SamplingConfig
from vdit.sampling.denoise import denoise
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.types import Array, PyTree, Row


def _rows(latents: Array, patch: tuple[int, int, int], prompts: Prompts, label: Array | None = None) -> Row:
    """Latents [b t h w c] as rows of one clip each."""
    canvas = Canvas(latents=latents, level=np.ones((*latents.shape[:2], 1, 1), np.float32))
    row = dense_rows(canvas_tokens(canvas, patch), prompts)
    return row if label is None else row.with_cond("label", label, "clip")


class DiTForward(Case):
    """Class-conditional DiT, one denoising call."""

    config = preset("DiT-XL/2" if GPU else "DiT-S/2", time_frequency_shift=1, dtype=DTYPE, scan=SCAN)
    side, batch = 32, 64 if GPU else 4

    def __init__(self, only: str | None = None):
        super().__init__(only)
        tokens = (self.side // 2) ** 2
        self.what = f"DiT {self.config.depth} x {self.config.width}, {self.batch} x {tokens} tokens"
        self.flops = self.config.flops(self.batch * tokens, tokens)
        self.latents = self.normal(self.batch, 1, self.side, self.side, 4)
        self.labels = np.arange(self.batch) % 1000
        self.times = np.full(self.batch, 500.0, np.float32)

    def make(self):
        from diffusers import DiTTransformer2DModel

        config = self.config
        module = DiTTransformer2DModel(
            num_attention_heads=config.heads, attention_head_dim=config.head_dim, in_channels=4, out_channels=8,
            num_layers=config.depth, sample_size=self.side, patch_size=2, num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero", norm_elementwise_affine=False, activation_fn="gelu-approximate",
            attention_bias=True,
        )  # fmt: skip
        # Each block has an embedder of times and classes of its own there; the model is meant to have one.
        for block in module.transformer_blocks:
            block.norm1.emb = module.transformer_blocks[0].norm1.emb
        return module

    @property
    def network(self) -> Network:
        return Network(text=None, backbone=self.config)

    def weights(self) -> PyTree:
        return {"dit": self.params(dit_maps.diffusers_rules(self.config), lambda key: self.network.init(key)["dit"])}

    def row(self) -> Row:
        """The latents as a row of one clip for each image; ours count classes from 1."""
        prompts = Prompts(ids=np.zeros((self.batch, 1), np.int32), length=np.ones(self.batch, np.int32))
        label = np.int32(self.labels[:, None] + 1)
        return _rows(self.latents, self.config.patch, prompts, label)

    @property
    def grid(self) -> tuple[int, int, int]:
        return 1, self.side // 2, self.side // 2

    def predict(self, params: PyTree, row: Row, times: Array) -> Array:
        """[b h w 2c]: prediction and variance."""
        out = self.network.apply(params, row, times[:, None]).prediction
        halves = jnp.split(out, 2, axis=-1)
        return jnp.concatenate([unpatchify(half, self.grid, self.config.patch)[:, 0] for half in halves], axis=-1)

    def ours(self) -> Run:
        return run_jax(self.predict, self.weights(), self.row(), self.times)

    def theirs(self, module) -> Run:
        latents, times, labels = to_torch(self.latents[:, 0].transpose(0, 3, 1, 2)), to_torch(self.times), None
        labels = to_torch(self.labels)
        return no_grad(lambda: module(latents, timestep=times, class_labels=labels).sample.permute(0, 2, 3, 1))


class DiTTraining(DiTForward):
    """A training step: forward, backward, AdamW. The numbers compared are the losses of the first steps."""

    steps = 3

    def __init__(self, only: str | None = None):
        super().__init__(only)
        self.what += ", forward, backward, AdamW"
        self.flops *= 3
        # The module stays in eval mode: it would drop labels at random, and both sides are to have the same losses.
        self.target = self.normal(self.batch, self.side, self.side, 8)

    def ours(self) -> Run:
        def loss(params, batch, key, step):
            del key, step
            prediction = self.predict(params, batch["row"], batch["times"])
            return jnp.mean(jnp.square(prediction - batch["target"])), {}

        optimizer = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, clip_norm=None)
        config = TrainConfig(steps=10**6, batch_size=self.batch, ema_decay=None, optimizer=optimizer)
        plan = plan_state(self.network.init, config, mesh=one_device())
        step = make_train_step(loss, plan, compiler_options=compiler_options())
        box = [plan.with_params(self.weights(), jax.random.key(0))]
        batch = {"row": self.row(), "times": self.times, "target": self.target}
        batch = jax.device_put(batch, step.shardings(batch))

        def run():
            box[0], metrics = step(box[0], batch)
            return numpy_of(metrics["loss"])

        return self._losses(run)

    def eager(self) -> Run:
        return self._train(self.module, self.module)

    def compile(self) -> Run:
        import torch

        return self._train(self.module, torch.compile(self.module))

    def _train(self, module, called) -> Run:
        import torch

        if not hasattr(self, "start"):
            self.start = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.start)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        latents, times = to_torch(self.latents[:, 0].transpose(0, 3, 1, 2)), to_torch(self.times)
        labels, target = to_torch(self.labels), to_torch(self.target.transpose(0, 3, 1, 2))

        def run():
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(called(latents, timestep=times, class_labels=labels).sample, target)
            loss.backward()
            optimizer.step()
            return numpy_of(loss)

        return self._losses(run)

    def _losses(self, run: Run) -> Run:
        """The first call makes a few steps, to be compared; the others one."""
        first = [True]

        def call():
            if not first[0]:
                return run()
            first[0] = False
            return np.array([run() for _ in range(self.steps)])

        return call


class WanForward(Case):
    """A stack of Wan's blocks at its true width, one denoising call with a caption of 512 tokens."""

    config = preset("wan2.1-t2v-1.3b", depth=30 if GPU else 2, dtype=DTYPE, scan=SCAN)
    grid = (21, 30, 52) if GPU else (1, 25, 40)
    captions = 512

    def __init__(self, only: str | None = None):
        super().__init__(only)
        t, h, w = self.grid
        tokens = t * h * w
        self.what = f"Wan {self.config.depth} x {self.config.width}, {tokens:,} tokens"
        self.flops = self.config.flops(tokens, tokens, self.captions)
        self.latents = self.normal(1, t, 2 * h, 2 * w, 16)
        self.text = self.normal(1, self.captions, self.config.text_width)
        self.times = np.array([500.0], np.float32)

    def make(self):
        from diffusers import WanTransformer3DModel

        json = wan.wan_json(self.config)
        return WanTransformer3DModel(**{name: value for name, value in json.items() if not name.startswith("_")})

    @property
    def network(self) -> Network:
        return Network(text=t5_text(t5_preset("umt5-xxl", layers=1, vocab_size=8)), backbone=self.config)

    def row(self) -> Row:
        """The latents as a row of one clip, whose caption is given encoded."""
        prompts = Prompts(ids=np.zeros((1, self.captions), np.int32), length=np.array([self.captions], np.int32))
        return _rows(self.latents, self.config.patch, prompts)

    def predict(self, params: PyTree, row: Row, times: Array, text: Array) -> Array:
        """[b t h w c]."""
        time = jnp.broadcast_to(times[:, None], row.frame_segment_ids.shape)
        out = self.network.apply(params, row, time, text).prediction
        return unpatchify(out, self.grid, self.config.patch)

    def ours(self) -> Run:
        params = {"dit": self.params(wan.diffusers_rules(self.config), lambda key: self.network.init(key)["dit"])}
        return run_jax(self.predict, params, self.row(), self.times, self.text)

    def theirs(self, module) -> Run:
        latents, times = to_torch(self.latents.transpose(0, 4, 1, 2, 3)), to_torch(self.times)
        text = to_torch(self.text)
        return no_grad(lambda: module(latents, times, text, return_dict=False)[0].permute(0, 2, 3, 4, 1))


class WanLong(WanForward):
    """The same at four times as many tokens."""

    grid = (21, 45, 80) if GPU else (4, 25, 40)


class VAEEncode(Case):
    """Wan 2.1's autoencoder at its true width: a clip to latents."""

    config = vae_preset("wan21", dtype=DTYPE)
    size = (33, 480, 832) if GPU else (9, 96, 96)

    def __init__(self, only: str | None = None):
        super().__init__(only)
        self.what = "Wan 2.1 VAE {} wide, {} frames of {} x {}".format(self.config.base_channels, *self.size)
        self.video = self.normal(1, *self.size, 3).clip(-1, 1)
        t, h, w, c = self.config.latent_shape(*self.size)
        self.latents = self.normal(1, t, h, w, c)

    def make(self):
        from diffusers import AutoencoderKLWan

        return AutoencoderKLWan(base_dim=self.config.base_channels)

    def weights(self) -> PyTree:
        stride = self.config.spatial_stride
        video = jnp.zeros((1, 1 + self.config.temporal_stride, stride, stride, 3))
        rules = wan_vae.diffusers_rules(self.config)
        return self.params(rules, lambda key: VAE(self.config).init(key, video)["params"])

    def ours(self) -> Run:
        def encode(params, video):
            return VAE(self.config).apply({"params": params}, video, method="encode").mean

        return run_jax(encode, self.weights(), self.video)

    def compile(self) -> Run:
        import torch

        return self.theirs(self.module, torch.compile)

    def theirs(self, module, around=lambda function: function) -> Run:
        encode, video = around(module.encode), to_torch(self.video.transpose(0, 4, 1, 2, 3))
        return no_grad(lambda: encode(video).latent_dist.mean.permute(0, 2, 3, 4, 1))


class VAEDecode(VAEEncode):
    """Latents to a clip."""

    def ours(self) -> Run:
        def decode(params, latents):
            return jnp.clip(VAE(self.config).apply({"params": params}, latents, method="decode"), -1.0, 1.0)

        return run_jax(decode, self.weights(), self.latents)

    def theirs(self, module, around=lambda function: function) -> Run:
        decode, latents = around(module.decode), to_torch(self.latents.transpose(0, 4, 1, 2, 3))
        return no_grad(lambda: decode(latents).sample.permute(0, 2, 3, 4, 1))


class NarrowVAEEncode(VAEEncode):
    """The same at a third of the width."""

    config = vae_preset("wan21", dtype=DTYPE, base_channels=32)
    size = (33, 480, 832) if GPU else (17, 96, 96)


class NarrowVAEDecode(VAEDecode):
    """The same at a third of the width."""

    config, size = NarrowVAEEncode.config, NarrowVAEEncode.size


class TextEncoding(Case):
    """umT5 at the width of Wan's, a caption of 512 tokens."""

    config = t5_preset("umt5-xxl", layers=24 if GPU else 2, vocab_size=4096, dtype=DTYPE, scan=SCAN)
    tokens = 512

    def __init__(self, only: str | None = None):
        super().__init__(only)
        self.what = f"umT5 {self.config.layers} x {self.config.width}, {self.tokens} tokens"
        self.ids = self.random.integers(2, 4096, (1, self.tokens))

    def make(self):
        return umt5(self.config)

    def ours(self) -> Run:
        encoder = make_encoder(t5_text(self.config))
        ids = np.int32(self.ids)
        places = (np.ones_like(ids), np.arange(self.tokens, dtype=np.int32)[None])
        names = None if self.module is None else self.module.state_dict()
        rules = t5.diffusers_rules(self.config, names)
        params = self.params(rules, lambda key: encoder.init(key, ids, *places)["params"])
        return run_jax(lambda params, *row: encoder.apply({"params": params}, *row), params, ids, *places)

    def theirs(self, module) -> Run:
        ids = to_torch(self.ids)
        mask = ids.ne(0).long()
        return no_grad(lambda: module(ids, mask).last_hidden_state)


def umt5(config: T5Config):
    """transformers' module of our config."""
    from transformers import UMT5Config, UMT5EncoderModel

    json = {name: value for name, value in t5.t5_json(config).items() if name not in ("architectures", "model_type")}
    return UMT5EncoderModel(UMT5Config(**json))


class Sampling(Case):
    """A whole run: 20 steps of UniPC with guidance, from noise and encoded captions to latents."""

    size_of = {} if GPU else {"width": 768, "heads": 6, "depth": 6}
    config = preset("wan2.1-t2v-1.3b", dtype=DTYPE, scan=SCAN, **size_of)
    frames, size, steps, scale = (33, (480, 832), 20, 5.0) if GPU else (9, (128, 128), 20, 5.0)

    def __init__(self, only: str | None = None):
        super().__init__(only)
        self.grid = (1 + (self.frames - 1) // 4, self.size[0] // 16, self.size[1] // 16)
        t, h, w = self.grid
        self.what = f"Wan {self.config.depth} x {self.config.width}, {self.steps} steps, {t * h * w:,} tokens, guided"
        self.flops = 2 * self.steps * self.config.flops(t * h * w, t * h * w, 512)
        self.noise = self.normal(1, t, 2 * h, 2 * w, 16)
        self.text = self.normal(2, 512, self.config.text_width)

    make = WanForward.make

    def ours(self) -> Run:
        network = _Captioned(text=t5_text(t5_preset("umt5-xxl", layers=1, vocab_size=8)), backbone=self.config)
        params = {"dit": self.params(wan.diffusers_rules(self.config), lambda key: network.init(key)["dit"])}
        method = SamplingConfig(
            schedule=Flow(shift=3.0, integer_timesteps=True),
            prediction="velocity",
            sampler=make("unipc"),
            grid=Grid(steps=self.steps, low=1e-3, ceiling=float(np.float32(1 - 1e-6))),
            guidance=Guidance(scale=self.scale),
        )
        prompts = Prompts(ids=np.zeros((1, 512), np.int32), length=np.array([512], np.int32))

        def sample(params, noise):
            canvas = blank(1, noise.shape[1:])
            return denoise(network, params, canvas, prompts, prompts, jax.random.key(0), method, noise=noise)

        return run_jax(sample, params | {"text": jnp.asarray(self.text)}, self.noise)

    def compile(self) -> Run:

        self.module.compile()
        return self.theirs(self.module)

    def theirs(self, module) -> Run:
        import torch
        from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        with torch.device("meta"):
            vae = AutoencoderKLWan()  # only asked for its strides
        pipe = WanPipeline(tokenizer=None, text_encoder=None, transformer=module, vae=vae, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        noise, text = to_torch(self.noise.transpose(0, 4, 1, 2, 3)), to_torch(self.text)
        options = {"height": self.size[0], "width": self.size[1], "num_frames": self.frames, "output_type": "latent"}

        def run():
            latents = pipe(
                prompt_embeds=text[:1], negative_prompt_embeds=text[1:], num_inference_steps=self.steps,
                guidance_scale=self.scale, latents=noise.float(), **options,
            ).frames  # fmt: skip
            return latents.permute(0, 2, 3, 4, 1)

        return no_grad(run)


class _Captioned(Network):
    """A network whose captions are encoded already, as both sides of a run are given them."""

    def encode_text(self, params: PyTree, row: Row) -> Array:
        del row
        return params["text"]


CASES: dict[str, type[Case]] = {
    "dit-forward": DiTForward,
    "dit-training": DiTTraining,
    "wan-1000": WanForward,
    "wan-4000": WanLong,
    "vae-encode": VAEEncode,
    "vae-decode": VAEDecode,
    "narrow-vae-encode": NarrowVAEEncode,
    "narrow-vae-decode": NarrowVAEDecode,
    "text-encoder": TextEncoding,
    "sampling": Sampling,
}
