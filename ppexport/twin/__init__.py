"""The static twin: a network rewritten for one input size with operations that every edge compiler takes.

Every rewrite is one module whose docstring shows the network's code before and the twin's after. Shapes are those of
one image: n tokens of the padded picture, C slots of category attention.
"""
