//! Graphs that must not compile.

#[test]
fn mistakes_that_types_can_see_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
