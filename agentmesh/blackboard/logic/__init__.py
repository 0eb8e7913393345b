"""Pure rules of the blackboard: what a post is, how queries read, what is a secret."""
