"""Data: ImageNet's training images without labels, 256 px (docs/reference.md). Any other folder does as well:

``--cfg-options train_dataloader.dataset.data_root=FOLDER train_dataloader.dataset.data_prefix=`` searches it at any
depth; a list of files is ``train_dataloader.dataset.ann_file=meta/train.txt`` (a path a line, a label behind it is
passed over).
"""

train_dataloader = dict(
    batch_size=64,  # a process; the learning rate follows the global batch
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(type='stack_images'),
    sampler=dict(type='SeededInfiniteSampler'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root='data/imagenet',
        data_prefix='train',
        max_unreadable=100,
        pipeline=[
            dict(
                type='SeedAugmentation'
            ),  # the draws below follow from seed and stream position: a resumed run repeats them
            dict(type='RandomResizedCropImage', size=256, scale=(0.2, 1.0), interpolation='bicubic'),
            dict(type='RandomFlipImage', prob=0.5),
            dict(type='PackImage'),
        ],
    ),
)
