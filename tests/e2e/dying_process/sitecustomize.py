"""What Python imports first where this folder is on its path: has the process die at its points."""

from tests.e2e.dying import arm

arm()
