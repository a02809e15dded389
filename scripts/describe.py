"""Show the layers of a model, their output shapes, parameters and FLOPs: `python scripts/describe.py --help`.

python scripts/describe.py encoder=resnet decoder=resize
python scripts/describe.py encoder=mine --config-dir my_conf data.image_shape=[3,32,32]
python scripts/describe.py encoder=resnet match=flops
"""

import sys

from commands import main

if __name__ == "__main__":
    main(["describe", *sys.argv[1:]])
