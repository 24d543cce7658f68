//! `select_row` against indexing.

mod common;
use common::*;
use schnell::kernels::select_row::SelectRow;

#[test]
fn copies_the_row_that_the_index_names_and_no_more() {
    for (rows, width, pitch) in [(1, 1, 1), (3, 255, 255), (4, 257, 300), (7, 4096, 4100)] {
        let bench = Bench::with_bytes(emulator(), 1 << 20);
        let values = Rng(width as u64).f32s(rows * pitch, 1.0);
        let table = bench.upload(&values);
        // Beyond the table: its first and its last row.
        for index in [-5, 0, rows as i32 / 2, rows as i32 - 1, rows as i32, i32::MAX] {
            let out = bench.upload(&vec![7.0f32; width + 3]);
            let index_view = bench.upload(&[index]);
            SelectRow { table: &table, pitch, rows, width, index: &index_view, out: &out }
                .launch(&bench.device, COMPUTE)
                .unwrap();
            let row = index.clamp(0, rows as i32 - 1) as usize;
            let want: Vec<f32> =
                values[row * pitch..row * pitch + width].iter().copied().chain([7.0; 3]).collect();
            assert_same(&format!("row {index} of {rows} x {width}"), &bench.download(&out), &want);
        }
    }
}

#[test]
fn refuses_views_that_are_too_short() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (table, out, index) = (bench.alloc::<f32>(20), bench.alloc::<f32>(5), bench.alloc::<i32>(1));
    let good = SelectRow { table: &table, pitch: 5, rows: 4, width: 5, index: &index, out: &out };
    good.launch(&bench.device, COMPUTE).unwrap();
    for bad in [
        SelectRow { rows: 5, ..good },
        SelectRow { pitch: 4, ..good },
        SelectRow { out: &out.slice(0, 4).unwrap(), ..good },
        SelectRow { index: &index.slice(0, 0).unwrap(), ..good },
        SelectRow { table: &table.slice(0, 0).unwrap(), rows: 0, ..good },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
}
