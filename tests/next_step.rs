//! `next_step` against adding one.

mod common;
use common::*;
use schnell::kernels::next_step::NextStep;

#[test]
fn adds_one_each_time_and_touches_nothing_else() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let step = bench.upload(&[-1i32, 5]);
    for want in 0..4 {
        NextStep { step: &step }.launch(&bench.device, COMPUTE).unwrap();
        assert_eq!(bench.download(&step), [want, 5]);
    }
    let none = step.slice(0, 0).unwrap();
    assert!(matches!(
        NextStep { step: &none }.launch(&bench.device, COMPUTE),
        Err(schnell::Error::Internal(_))
    ));
}
