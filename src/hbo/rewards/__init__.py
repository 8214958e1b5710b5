"""Rewards: functions of the training state, in two tables that fit on a screen."""

from hbo.rewards.global_rewards import GLOBAL_REWARDS
from hbo.rewards.local_rewards import LOCAL_REWARDS
from hbo.rewards.reward import Measured, Reward

__all__ = ["GLOBAL_REWARDS", "LOCAL_REWARDS", "Measured", "Reward"]
