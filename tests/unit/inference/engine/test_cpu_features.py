"""What a build takes from the CPU: everything but AMX, which compilers in use get wrong."""

from __future__ import annotations

from agentmesh.inference.engine.cpu_features import features_in, options_in

NAMES = "fpu sse4_2 avx avx2 fma f16c bmi2 avx512f avx512_vnni"


def test_a_cpu_without_amx_is_built_for_as_it_is() -> None:
    assert options_in(f"processor: 0\nflags\t\t: {NAMES}\n") == ()
    assert options_in("Features\t: fp asimd i8mm\n") == ()
    assert options_in("") == ()


def test_a_cpu_with_amx_gets_a_build_that_names_everything_else() -> None:
    options = options_in(f"flags\t\t: {NAMES} amx_bf16 amx_tile amx_int8\n")
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_BF16=OFF"} <= {*options}
    assert "AMX" not in " ".join(options)


def test_amx_does_not_make_a_build_foreign() -> None:
    assert features_in(f"flags\t\t: {NAMES} amx_tile\n") == features_in(f"flags\t\t: {NAMES}\n")
