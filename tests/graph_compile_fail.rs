//! What must not compile: the compiler is the first checker of a graph in Rust.

#[test]
fn mistakes_that_types_can_see_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
