#!/usr/bin/env python
"""Train or evaluate a model.

    train_net.py --config-file configs/shapes/maskformer_panoptic.yaml
    train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    train_net.py --config-file ... --resume

Several processes: --num-gpus N (CPU processes where there is no GPU), torchrun, or srun.
"""

from mask_former.engine import argument_parser, launch, main

if __name__ == "__main__":
    arguments = argument_parser(epilog=__doc__).parse_args()
    launch(
        main,
        arguments.num_gpus,
        arguments.num_machines,
        arguments.machine_rank,
        arguments.dist_url,
        args=(arguments,),
    )
