"""python -m fracray: the `fracray` command."""

from fracray.cli import main

raise SystemExit(main())
