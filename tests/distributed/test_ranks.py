from workflow_lib.distributed.ranks import Ranks


def test_a_process_without_a_rank_is_the_launcher_of_its_node() -> None:
    first, second = Ranks.from_env({}), Ranks.from_env({"SLURM_NODEID": "1"})
    assert first.is_launcher
    assert first.is_main
    assert first.is_owner
    assert second.is_launcher
    assert not second.is_main
    assert not second.is_owner


def test_a_rank_reads_its_place_from_the_variables_of_the_elastic_agent() -> None:
    env = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "GROUP_RANK": "1", "SLURM_NODEID": "7"}
    assert Ranks.from_env(env) == Ranks(rank=3, local_rank=1, world_size=4, node=1)


def test_rank_0_is_main_but_does_not_own_the_workspace() -> None:
    main = Ranks(rank=0, world_size=2)
    assert main.is_main
    assert not main.is_owner
    assert not Ranks(rank=1, local_rank=1, world_size=2).is_main
