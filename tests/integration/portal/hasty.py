"""The portal with little patience for slow clients: `python -m tests.integration.portal.hasty portal ...`."""

from service.cli import main
from service.portal import protection, serving

protection.BODY_SECONDS = 1.0  # type: ignore[misc]
serving.IDLE_SECONDS = 1.0  # type: ignore[misc]
serving.STALLED_SECONDS = 1.0  # type: ignore[misc]
main()
