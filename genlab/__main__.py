"""`python -m genlab` is `genlab`."""

from genlab.cli.main import main

if __name__ == "__main__":
    main()
