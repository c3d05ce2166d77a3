"""Finds what makes a model forget a target, for somebody who knows none of the methods: `python -m classifiers.auto`.

`candidates` says what may be tried, `bench` measures it, `search` tries what the budget allows, `choice` decides, and
`report` tells about it.
"""
