"""Backbones: map features to one representation per task."""

from dlen.models.backbones.adatt import AdaTTBackbone, AdaTTLevel, NativeMix
from dlen.models.backbones.base import EXPERT, Attention, AttentionBackbone, Backbone, Mixture
from dlen.models.backbones.cross_stitch import CrossStitchBackbone
from dlen.models.backbones.home import HoMEBackbone
from dlen.models.backbones.mmoe import MMoEBackbone, MoEBackbone
from dlen.models.backbones.mran import MRANBackbone
from dlen.models.backbones.ple import CGCBackbone, CGCLevel, PLEBackbone
from dlen.models.backbones.ppnet import PPNetBackbone, ScaledMLP
from dlen.models.backbones.shared_bottom import SharedBottomBackbone
from dlen.models.backbones.stem import STEMBackbone
from dlen.models.backbones.task_networks import TaskNetworksBackbone

__all__ = [
    "EXPERT",
    "AdaTTBackbone",
    "AdaTTLevel",
    "Attention",
    "AttentionBackbone",
    "Backbone",
    "CGCBackbone",
    "CGCLevel",
    "CrossStitchBackbone",
    "HoMEBackbone",
    "MMoEBackbone",
    "MRANBackbone",
    "Mixture",
    "MoEBackbone",
    "NativeMix",
    "PLEBackbone",
    "PPNetBackbone",
    "STEMBackbone",
    "ScaledMLP",
    "SharedBottomBackbone",
    "TaskNetworksBackbone",
]
