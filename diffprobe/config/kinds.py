"""Kinds of experiment files: which dataclass validates a file, and which verb runs it.

A file sets its kind with `kind: demo`; without that key it describes a probe run. The dataclass is imported when a
file of its kind is read.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of experiment file.

    Attributes:
        config: "module:Class" of the dataclass that validates the file.
        verb: the command that runs it, without `diffprobe`.
    """

    config: str
    verb: str

    def load(self) -> type[Any]:
        """Import the dataclass."""
        module, _, name = self.config.partition(":")
        found: type[Any] = getattr(import_module(module), name)
        return found


PROBE = "probe"
"""The kind of a file without the key `kind`."""

KINDS = {
    PROBE: Kind("diffprobe.config.schema:RunConfig", "train"),
    "audit": Kind("diffprobe.evaluation.audit_settings:Audit", "audit"),
    "demo": Kind("diffprobe.demo.config:DemoConfig", "demo"),
    "evaluate_backbone": Kind("diffprobe.evaluation.backbone_settings:BackboneEvaluation", "eval backbone BACKBONE"),
    "evaluate_clusters": Kind("diffprobe.evaluation.clusters_settings:ClustersEvaluation", "eval clusters RUN_FOLDER"),
    "evaluate_concepts": Kind("diffprobe.evaluation.concepts_settings:ConceptsEvaluation", "eval concepts"),
    "evaluate_correspondence": Kind(
        "diffprobe.evaluation.correspondence_settings:CorrespondenceEvaluation", "eval correspondence"
    ),
    "evaluate_depth": Kind("diffprobe.evaluation.depth_settings:DepthEvaluation", "eval depth"),
    "evaluate_directions": Kind("diffprobe.evaluation.directions:DirectionsEvaluation", "eval directions MODEL"),
    "evaluate_generations": Kind("diffprobe.evaluation.generations:GenerationEvaluation", "eval generations"),
    "evaluate_granularity": Kind(
        "diffprobe.evaluation.granularity:GranularityEvaluation", "eval granularity RUN_FOLDER"
    ),
    "evaluate_joint": Kind("diffprobe.evaluation.joint_settings:JointEvaluation", "eval joint RUN_FOLDER"),
    "evaluate_labels": Kind("diffprobe.evaluation.labels:LabelsEvaluation", "eval labels RUN_FOLDER"),
    "evaluate_lifetimes": Kind("diffprobe.evaluation.lifetimes:LifetimesEvaluation", "eval lifetimes RUN_FOLDER"),
    "evaluate_latents": Kind("diffprobe.evaluation.latent_use_settings:LatentUseEvaluation", "eval latents RUN_FOLDER"),
    "evaluate_long_tail": Kind(
        "diffprobe.evaluation.long_tail_settings:LongTailEvaluation", "eval long-tail RUN_FOLDER"
    ),
    "evaluate_rates": Kind("diffprobe.evaluation.rates:RatesEvaluation", "eval rates MODEL"),
    "evaluate_sae": Kind("diffprobe.evaluation.sae:SaeEvaluation", "eval sae RUN_FOLDER"),
    "evaluate_segmentation": Kind(
        "diffprobe.evaluation.segmentation_settings:SegmentationEvaluation", "eval segmentation"
    ),
    "evaluate_steering": Kind("diffprobe.evaluation.steering_settings:SteeringEvaluation", "eval steering RUN_FOLDER"),
    "evaluate_use": Kind("diffprobe.evaluation.use:UseEvaluation", "eval use"),
    "extract_prompts": Kind("diffprobe.config.prompt_schema:PromptExtraction", "extract"),
    "score": Kind("diffprobe.evaluation.score_settings:ScoreConfig", "score"),
    "scenes_demo": Kind("diffprobe.demo.scenes.config:ScenesDemo", "demo"),
    "train_autoencoder": Kind("diffprobe.generative.autoencoder:AutoencoderTraining", "train"),
    "train_cleandift": Kind("diffprobe.generative.cleandift:CleanDiftTraining", "train"),
    "train_denoiser": Kind("diffprobe.generative.denoiser_training:DenoiserTraining", "train"),
    "train_difffeed": Kind("diffprobe.generative.difffeed:DiffFeedTraining", "train"),
    "train_reader": Kind("diffprobe.generative.scene_reader_training:ReaderTraining", "train"),
    "train_self_guided": Kind("diffprobe.generative.self_guided:SelfGuidedTraining", "train"),
    "train_text_encoder": Kind("diffprobe.generative.text_encoder:TextEncoderTraining", "train"),
    "train_vpd": Kind("diffprobe.generative.vpd:VpdTraining", "train"),
    "train_visual_tower": Kind("diffprobe.generative.visual_tower.module:VisualTowerTraining", "train"),
}


def kinds_of(verb: str) -> tuple[str, ...]:
    """List the kinds that one verb runs."""
    return tuple(name for name, kind in KINDS.items() if kind.verb == verb)
