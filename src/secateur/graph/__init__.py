"""What a model is made of: axes, the rules that relate them, and the groups that are left.

Read in this order: ``axes`` (the algebra), ``lengths`` and ``conditions`` (what else is known of an
axis), ``typing`` (a tensor's type and the verbs of a rule), ``rules`` (one function per family of
operations), ``equations`` and ``balance`` (what the sizes in the code ask for), ``groups`` (the
answer), ``cost`` (what it costs).  ``record`` and ``attributes`` watch
the one forward that the rules are applied to.
"""
