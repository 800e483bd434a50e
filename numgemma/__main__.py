"""python -m numgemma"""

import sys

from numgemma.cli import main

sys.exit(main())
