"""A training run of a denoiser: the module of its network, and its captioned images."""

from dataclasses import dataclass

from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.denoiser_settings import DenoiserSettings
from diffprobe.generative.flow_denoiser import FlowDenoiserModule
from diffprobe.generative.image_table import ImageTableData
from diffprobe.generative.joint_denoiser import JointDenoiserModule


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining(DenoiserSettings):
    """A training run of a denoiser (experiment files of kind `train_denoiser`)."""

    def make(self) -> tuple[DenoiserModule, ImageTableData]:
        """Build the module and its captioned images. Raises: what reading weights and shards raises."""
        module = self._module()
        images = module.image_data()
        module.set_classes(images.train)
        return module, images

    def _module(self) -> DenoiserModule:
        if self.transformer is not None:
            return FlowDenoiserModule(self)
        is_joint = self.alignment is not None and self.alignment.trains_head
        return JointDenoiserModule(self) if is_joint else DenoiserModule(self)
