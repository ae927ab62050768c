#!/usr/bin/env python
"""Train or evaluate a model.

    train_net.py --config-file configs/shapes/maskformer_panoptic.yaml
    train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    train_net.py --config-file ... --resume

Several processes: --num-gpus N (CPU processes where there is no GPU), torchrun, or srun.
"""

from detectron2.engine import default_argument_parser

from mask_former.engine import launch, main

if __name__ == "__main__":
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        *("--import", "-m"),
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which registers your own data sets or models",
    )
    arguments = parser.parse_args()
    launch(
        main,
        arguments.num_gpus,
        arguments.num_machines,
        arguments.machine_rank,
        arguments.dist_url,
        args=(arguments,),
    )
