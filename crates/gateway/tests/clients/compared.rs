//! What docs/compare.md says of the gateway.

use onlyonce_testkit::scenarios_are_as_published;

use crate::kit::BIN;

#[test]
fn the_gateway_does_what_the_comparison_says() {
    scenarios_are_as_published("onlyonce-gateway", BIN);
}
