"""Networks that are saved, shared and run: speech to mesh, speech to head pose.

Nothing is imported here, so that `import talkinghead` stays fast; take what you need from the modules.
"""
