"""What a release consists of, made so that anybody can make the same bytes again: docs/RELEASING.md.

distribution   the wheel and the source distribution
bill           the bill of materials (CycloneDX)
licences       the licences of what is shipped with it, and which are allowed
audit          known vulnerabilities of what is pinned
steps          all of it in order, checked: `scripts/release`
"""
