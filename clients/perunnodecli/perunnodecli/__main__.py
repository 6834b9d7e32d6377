"""``python -m perunnodecli``."""

from perunnodecli.main import main

if __name__ == "__main__":
    main()
