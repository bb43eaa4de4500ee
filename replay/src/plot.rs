//! Verdicts as a picture: what each policy costs on devices of less and less memory.
//!
//! It knows nothing of traces and of what a policy does.

use std::error::Error;

use plotters::prelude::*;

use crate::judge::Verdict;

/// The size of the picture, in points.
const SIZE: (u32, u32) = (800, 500);

/// Colours that are told apart by all people, and in grey (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
];

/// A line of the picture: footprint for each byte of the device, and link bytes for each byte of the
/// footprint.
struct Curve {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// A picture in the format SVG: a line for each policy, and one for the bound, if that is known.
///
/// # Errors
///
/// When there is nothing to draw.
pub fn svg(verdicts: &[Verdict]) -> Result<String, Box<dyn Error>> {
    let curves = curves(verdicts);
    let points = || curves.iter().flat_map(|curve| &curve.points).copied();
    let (Some(right), Some(bottom), Some(top)) = (
        points().map(|point| point.0).reduce(f64::max),
        points().map(|point| point.1).reduce(f64::min),
        points().map(|point| point.1).reduce(f64::max),
    ) else {
        return Err("there is nothing to draw".into());
    };
    let left = points().map(|point| point.0).fold(right, f64::min);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let across = left.min(1.0)..right * 1.05;
        let up = (bottom * 0.8)..(top * 1.25);
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(58)
            .build_cartesian_2d(across, up.log_scale())?;
        chart
            .configure_mesh()
            .x_desc("memory of the run, for each byte of the device's")
            .y_desc("bytes over the link, for each byte of the run's memory")
            .light_line_style(WHITE)
            .draw()?;
        for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
            let style = colour.stroke_width(2);
            let dots = curve.points.iter();
            chart.draw_series(dots.map(|point| Circle::new(*point, 4, colour.filled())))?;
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), style))?
                .label(curve.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.9))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
    }
    Ok(text)
}

/// A curve for each policy in the order of the verdicts, and the bound.
#[expect(clippy::cast_precision_loss, reason = "for a picture")]
fn curves(verdicts: &[Verdict]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    let mut add = |name: &'static str, point: (f64, f64)| {
        let found = curves.iter_mut().find(|curve| curve.name == name);
        match found {
            Some(curve) if curve.points.contains(&point) => {}
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve {
                name,
                points: vec![point],
            }),
        }
    };
    for verdict in verdicts {
        let footprint = verdict.footprint.max(1) as f64;
        let ratio = footprint / verdict.capacity.max(1) as f64;
        add(verdict.policy, (ratio, verdict.of_footprint()));
    }
    for verdict in verdicts {
        let footprint = verdict.footprint.max(1) as f64;
        let ratio = footprint / verdict.capacity.max(1) as f64;
        if let Some(bound) = verdict.bound {
            add("bound", (ratio, bound as f64 / footprint));
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    curves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;

    fn verdict(policy: &'static str, capacity: u64, link_bytes: u64) -> Verdict {
        Verdict {
            policy,
            capacity,
            footprint: 4 << 20,
            cost: Cost::default(),
            link_bytes,
            bound: Some(3 << 20),
            link_nanoseconds: None,
        }
    }

    #[test]
    fn each_policy_has_a_line_and_the_bound_another() {
        let verdicts = [
            verdict("heat", 2 << 20, 5 << 20),
            verdict("never", 2 << 20, 8 << 20),
            verdict("heat", 1 << 20, 7 << 20),
            verdict("never", 1 << 20, 8 << 20),
        ];
        let found = curves(&verdicts);
        let names: Vec<_> = found.iter().map(|curve| curve.name).collect();
        assert_eq!(names, ["heat", "never", "bound"]);
        assert_eq!(found[0].points, [(2.0, 1.25), (4.0, 1.75)]);
        assert_eq!(found[2].points, [(2.0, 0.75), (4.0, 0.75)]);
        let text = svg(&verdicts).unwrap();
        assert!(text.starts_with("<svg"), "{text}");
        assert_eq!(text.matches("<circle").count(), 6);
        for name in ["heat", "never", "bound"] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn nothing_is_not_drawn() {
        assert!(svg(&[]).is_err());
    }
}
