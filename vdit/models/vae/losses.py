"""What the VAE and its discriminator are trained on, by one backward pass for both.

The generator's term sees the discriminator's parameters through stop_gradient, the discriminator's terms
see the reconstruction through stop_gradient: the gradient of the sum is, for each network, the gradient
of its own loss. Devices of the mesh in context share the clips (vdit/models/vae/split.py); the losses are those of one
device.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import meta

from vdit.dist.rules import constrain
from vdit.errors import ConfigError, ShapeError, install_command
from vdit.models.vae import split
from vdit.models.vae.config import DiscriminatorConfig, VAEConfig, VAELossConfig
from vdit.models.vae.model import VAE, Discriminator
from vdit.reprs import short_repr
from vdit.types import Array, PyTree

# Perceptual distance between images, from the features of SqueezeNet 1.1 (Iandola et al., 2016). The weights are the
# user's: a Keras h5 file without the classifier. Distances are taken as in LPIPS (Zhang et al., 2018) with equal
# weights: features of unit length at each position, squared differences.
FIRES = ("fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9")
PARTS = ("squeeze1x1", "expand1x1", "expand3x3")
POOL_AFTER = ("conv1", "fire3", "fire5")
FEATURES = ("conv1", "fire3", "fire5", "fire7", "fire9")  # before the pool, where one follows
MEAN_BGR = (103.939, 116.779, 123.68)
MIN_SIDE = 32

# Of the squared strength of edges, of pixels in [-1, 1]: keeps the gradient of the root finite on flat ground.
EDGE_FLOOR = 2e-4


def load_squeezenet(path: str | Path) -> PyTree:
    """Parameters {layer: {"kernel": [kh kw i o], "bias": [o]}} from a Keras h5 file (read with h5py)."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"reading perceptual weights needs h5py: {install_command('data')}") from error
    if not Path(path).is_file():
        raise ConfigError(f"perceptual weights {str(path)!r} not found: give SqueezeNet 1.1's h5 file")
    layers = ["conv1", *(f"{fire}/{part}" for fire in FIRES for part in PARTS)]
    try:
        with h5py.File(path, "r") as file:
            return {layer: _read_layer(file, layer) for layer in layers}
    except (OSError, KeyError) as error:
        raise ConfigError(f"{str(path)!r} is not SqueezeNet 1.1 as a Keras h5 file: {error}") from error


def _read_layer(file, layer: str) -> dict[str, np.ndarray]:
    # Keras nests arrays under repeated names that differ between versions; rank tells them apart.
    found: dict[int, np.ndarray] = {}

    def visit(_: str, node) -> None:
        if hasattr(node, "ndim"):
            found[node.ndim] = node[()]

    file[layer].visititems(visit)
    if set(found) != {1, 4}:
        raise KeyError(f"layer {layer} has arrays of rank {sorted(found)}, not one kernel and one bias")
    return {"kernel": found[4].astype(np.float32), "bias": found[1].astype(np.float32)}


def squeezenet_features(params: PyTree, images: Array) -> list[Array]:
    """Features of SqueezeNet 1.1 (Iandola et al., 2016).

    Args:
        params: its parameters, of `load_squeezenet`.
        images: [n h w 3] in [-1, 1].

    Returns:
        Features [n h' w' c], from the shallowest layer to the deepest.

    Raises:
        ShapeError: the images are too small.
    """
    if min(images.shape[1:3]) < MIN_SIDE:
        raise ShapeError(f"images of {images.shape[1:3]} are too small for SqueezeNet: use {MIN_SIDE}+")

    def conv(x, layer, stride=1, padding="SAME"):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dims)
        return jax.nn.relu(x + bias)

    x = (images.astype(jnp.float32)[..., ::-1] + 1.0) * 127.5 - jnp.asarray(MEAN_BGR)
    features = []
    for layer in ("conv1", *FIRES):
        if layer == "conv1":
            x = conv(x, layer, 2, "VALID")
        else:
            x = conv(x, f"{layer}/squeeze1x1")
            x = jnp.concatenate([conv(x, f"{layer}/expand1x1"), conv(x, f"{layer}/expand3x3")], axis=-1)
        if layer in FEATURES:
            features.append(x)
        if layer in POOL_AFTER:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    return features


def perceptual_distance(params: PyTree, x: Array, y: Array) -> Array:
    """Distance of pairs of images in the features of SqueezeNet (Zhang et al., 2018, without learned weights).

    Args:
        params: of SqueezeNet, of `load_squeezenet`.
        x: [n h w 3] in [-1, 1].
        y: [n h w 3] in [-1, 1].

    Returns:
        [n]; 0 for equal images.
    """
    distances = []
    for f, g in zip(squeezenet_features(params, x), squeezenet_features(params, y)):
        distances.append(jnp.mean(jnp.sum(jnp.square(_unit(f) - _unit(g)), axis=-1), axis=(1, 2)))
    return jnp.mean(jnp.stack(distances), axis=0)


def _unit(features: Array) -> Array:
    return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True) + 1e-6)


def to_float(video: Array) -> Array:
    """uint8 in 0..255 to float32 in [-1, 1]; floats pass: `[...] -> [...]`."""
    if video.dtype == jnp.uint8:
        return video.astype(jnp.float32) / 127.5 - 1.0
    return video.astype(jnp.float32)


def reconstruction_loss(config: VAELossConfig, x: Array, y: Array) -> Array:
    """Mean distance of two arrays, as config.reconstruction names it: "l1", "mse" or "huber".

    Args:
        config: the loss of the VAE.
        x: any shape.
        y: the same shape.

    Returns:
        A scalar.

    Raises:
        ConfigError: config.reconstruction is none of these.
    """
    error = jnp.abs(x - y)
    if config.reconstruction == "l1":
        return jnp.mean(error)
    if config.reconstruction == "mse":
        return jnp.mean(jnp.square(error))
    if config.reconstruction == "huber":
        delta = config.huber_delta
        return jnp.mean(jnp.where(error < delta, 0.5 * jnp.square(error) / delta, error - 0.5 * delta))
    raise ConfigError(f"vae_loss.reconstruction={config.reconstruction!r} must be l1, mse or huber")


def edge_loss(x: Array, y: Array) -> Array:
    """How differently strong the edges of two videos are, wherever in a window of 4x4 pixels they run.

    The strength is the root mean square length of the gradient (forward differences, all channels) in a window; windows
    lie 2 pixels apart. A blurred edge has less of it than a steep one. A decoder that is unsure of an edge's place
    lowers a distance of pixels by blurring, and this one by a steep edge at either place.

    Args:
        x: [b t h w c], sides of at least 5 pixels.
        y: the same shape.

    Returns:
        A scalar: the mean difference of the windows' strengths.

    Raises:
        ShapeError: a side is shorter.
    """
    if min(x.shape[2:4]) < 5:
        raise ShapeError(f"a video of {x.shape[2]}x{x.shape[3]} pixels has no window of edges: give at least 5x5")

    def strength(video: Array) -> Array:
        across = jnp.diff(video, axis=3)[:, :, :-1]
        down = jnp.diff(video, axis=2)[:, :, :, :-1]
        square = (jnp.square(across) + jnp.square(down)).sum(-1)
        total = jax.lax.reduce_window(square, 0.0, jax.lax.add, (1, 1, 4, 4), (1, 1, 2, 2), "VALID")
        return jnp.sqrt(total / 16 + EDGE_FLOOR)

    return jnp.mean(jnp.abs(strength(x) - strength(y)))


def hinge_discriminator_loss(real: Array, fake: Array) -> Array:
    """Hinge loss of a discriminator: scores of real videos above 1, of reconstructions below -1 (Lim and Ye, 2017).

    Args:
        real: scores of any shape.
        fake: scores of any shape.

    Returns:
        A scalar.
    """
    return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))


def hinge_generator_loss(fake: Array) -> Array:
    """Hinge loss of a generator: the negative mean of its scores, of any shape; a scalar."""
    return -jnp.mean(fake)


def _turned(x: Array, turn: Array) -> Array:
    """Videos [b t h w c] mirrored and turned: `turn` from 0 to 7 is one of the square's symmetries.

    Pictures that are no squares are mirrored only: their turns have another shape.
    """
    for axis, bit in ((2, 1), (3, 2)):
        x = jnp.where(turn & bit, jnp.flip(x, axis), x)
    return jnp.where(turn & 4, jnp.swapaxes(x, 2, 3), x) if x.shape[2] == x.shape[3] else x


def _noisy(latents: Array, scale: float, key: Array) -> Array:
    """Latents [b t h w c] with noise; its strength is drawn for each clip, in standard deviations of each channel."""
    strength_key, noise_key = jax.random.split(key)
    strength = scale * jnp.abs(jax.random.normal(strength_key, (latents.shape[0], 1, 1, 1, 1)))
    # With its gradient: larger latents are no way around the noise. That of a root has none at 0.
    deviation = jnp.sqrt(jnp.var(latents, axis=(0, 1, 2, 3)) + 1e-12)
    return latents + strength * deviation * jax.random.normal(noise_key, latents.shape)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # hashed by identity: it holds arrays
class VAELoss:
    """`loss(params, batch, key, step) -> (scalar, metrics)`, to be differentiated in `params`.

    params: {"vae": ..., "disc": ...}, the second only where config.adversarial_weight is not 0.
    batch: {"video": [b t h w 3], uint8, or float in [-1, 1]}. step: counts from 0.
    squeezenet: parameters of the perceptual features, None where their weight is 0.
    decoder_only: see `for_decoder`.
    """

    vae: VAE
    config: VAELossConfig
    discriminator: Discriminator | None = None
    squeezenet: PyTree = None
    decoder_only: bool = False

    def for_decoder(self) -> VAELoss:
        """This loss in the steps of `decoder_share`: no gradient of the encoder, and no terms that are for it."""
        kind = self.config.decoder_reconstruction or self.config.reconstruction
        return dataclasses.replace(
            self, decoder_only=True, config=dataclasses.replace(self.config, reconstruction=kind)
        )

    def init(self, key: Array, video: Array, *, boxed: bool = False) -> PyTree:
        """Fresh parameters for videos of this shape; `boxed` keeps the logical axis names on them."""
        keys = jax.random.split(key)
        params = {"vae": self.vae.init(keys[0], to_float(video))["params"]}
        if self.discriminator is not None:
            params["disc"] = self.discriminator.init(keys[1], to_float(video))["params"]
        return params if boxed else meta.unbox(params)

    def __call__(
        self, params: PyTree, batch: PyTree, key: Array, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        config = self.config
        video = to_float(batch["video"])
        sample_key, frame_key = jax.random.split(key)
        gaussian = split.encode(self.vae.config, params["vae"], video)
        latents = jax.lax.stop_gradient(gaussian.mean) if self.decoder_only else gaussian.sample(sample_key)
        noisy = _noisy(latents, config.latent_noise, jax.random.fold_in(key, 3)) if config.latent_noise else latents
        recon = split.decode(self.vae.config, params["vae"], noisy)
        metrics = {
            "reconstruction": reconstruction_loss(config, recon, video),
            "kl": jnp.mean(gaussian.kl()),
            "psnr": -10.0 * jnp.log10(jnp.mean(jnp.square(jnp.clip(recon, -1, 1) - video)) / 4.0 + 1e-12),
        }
        loss = metrics["reconstruction"]
        if config.decoder_edge_weight and self.decoder_only:
            metrics["edges"] = edge_loss(recon, video)
            loss = loss + config.decoder_edge_weight * metrics["edges"]
        if not self.decoder_only:
            loss = loss + config.kl_weight * metrics["kl"]
        if config.equivariance_weight and not self.decoder_only:
            metrics["equivariance"] = self._equivariance(params["vae"], latents, video, jax.random.fold_in(key, 2))
            loss = loss + config.equivariance_weight * metrics["equivariance"]
        if self.squeezenet is not None:
            metrics["perceptual"] = self._perceptual(recon, video, frame_key)
            loss = loss + config.perceptual_weight * metrics["perceptual"]
        if self.discriminator is not None:
            generator, discriminator = self._adversarial(params["disc"], recon, video)
            metrics |= {"generator": generator, "discriminator": discriminator}
            on = jnp.asarray(step >= config.adversarial_start, jnp.float32)
            loss = loss + on * (config.adversarial_weight * generator + discriminator)
        metrics["loss"] = loss
        return loss, metrics

    def _equivariance(self, params: PyTree, latents: Array, video: Array, key: Array) -> Array:
        """How far what half-sized, turned latents decode to is from the video, made half the size and turned."""
        stride, (h, w) = self.vae.config.spatial_stride, (max(1, side // 2) for side in latents.shape[2:4])
        small = jax.image.resize(latents, (*latents.shape[:2], h, w, latents.shape[-1]), "linear")
        true = jax.image.resize(video, (*video.shape[:2], h * stride, w * stride, video.shape[-1]), "linear")
        turn = jax.random.randint(key, (), 0, 8)
        small, true = (_turned(x, turn) for x in (small, true))
        return reconstruction_loss(self.config, split.decode(self.vae.config, params, small), true)

    def _adversarial(self, params: PyTree, recon: Array, video: Array) -> tuple[Array, Array]:
        def score(params: PyTree, x: Array) -> Array:
            return split.score(self.discriminator.config, params, x)

        generator = hinge_generator_loss(score(jax.lax.stop_gradient(params), recon))
        fake = score(params, jax.lax.stop_gradient(recon))
        return generator, hinge_discriminator_loss(score(params, video), fake)

    def _perceptual(self, recon: Array, video: Array, key: Array) -> Array:
        frames = jax.random.permutation(key, video.shape[1])[: self.config.perceptual_frames]
        # A few frames: whole where they are looked at.
        x, y = (constrain(v[:, frames], ("batch", *[None] * 4)).reshape(-1, *v.shape[2:]) for v in (recon, video))
        return jnp.mean(perceptual_distance(self.squeezenet, x, y))


def make_loss(
    vae: VAEConfig, config: VAELossConfig, discriminator: DiscriminatorConfig | None = None
) -> VAELoss:
    """The loss that the configs ask for, with its networks; reads the perceptual weights from disk."""
    adversarial = config.adversarial_weight > 0
    return VAELoss(
        vae=VAE(vae),
        config=config,
        discriminator=Discriminator(discriminator or DiscriminatorConfig()) if adversarial else None,
        squeezenet=load_squeezenet(config.perceptual_weights) if config.perceptual_weight > 0 else None,
    )
