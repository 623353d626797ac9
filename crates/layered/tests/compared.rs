//! What docs/compare.md says of the layer.

use onlyonce_testkit::scenarios_are_as_published;

#[test]
fn the_layer_does_what_the_comparison_says() {
    scenarios_are_as_published("onlyonce-layer", env!("CARGO_BIN_EXE_onlyonce-layered"));
}
