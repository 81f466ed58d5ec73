"""Training: thin LightningModules over probes, the Trainer, trackers and resume.

A module takes `FeatureBatch`es from a DataModule of `diffprobe.features`, never a backbone. module.py is the base;
sae.py, classifier.py and direction.py hold one kind of probe each; fit.py makes the Trainer, tracking.py the logger.
"""
