"""Tasks: what to encode, and how to score it. Each class is configured in YAML with `class_path: mc2.benchmarks.tasks.<name>` (docs/evaluation.md)."""

from mc2.benchmarks.tasks.captions import XM3600, XTD10, XTD200, Flickr30k200
from mc2.benchmarks.tasks.collection import DataComp, DataCompRetrieval, Slip
from mc2.benchmarks.tasks.culture import DollarStreet, GeoDE, GLDv2
from mc2.benchmarks.tasks.cvqa import CVQA
from mc2.benchmarks.tasks.folder import TaskFolder, write_task_folder
from mc2.benchmarks.tasks.geolocation import DollarStreetGeolocation, GeoDEGeolocation
from mc2.benchmarks.tasks.held_out import HeldOutPairs
from mc2.benchmarks.tasks.imagenet import BabelImageNet, ImageNet, ImageNetV2
from mc2.benchmarks.tasks.task import PREDICTIONS_SCHEMA, ImageSet, Task

__all__ = [
    "CVQA",
    "PREDICTIONS_SCHEMA",
    "XM3600",
    "XTD10",
    "XTD200",
    "BabelImageNet",
    "DataComp",
    "DataCompRetrieval",
    "DollarStreet",
    "DollarStreetGeolocation",
    "Flickr30k200",
    "GLDv2",
    "GeoDE",
    "GeoDEGeolocation",
    "HeldOutPairs",
    "ImageNet",
    "ImageNetV2",
    "ImageSet",
    "Slip",
    "Task",
    "TaskFolder",
    "write_task_folder",
]
