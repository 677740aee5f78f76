"""`python -m fastcnn` is the command `fastcnn`."""

from fastcnn.cli import main

raise SystemExit(main())
