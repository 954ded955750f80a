"""What a client needs: its environment, a probe that runs inside its VM, a brief for
its agent.

Pure.
"""
