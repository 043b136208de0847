// From a picture of up to 16 bits and a view of it to the pixels of a canvas. Pure functions: no page, no server.
//
// Only what the canvas shows is computed, from halved copies of the picture where it is shown small. So a picture of
// 100 megapixels costs no more than a small one.

/** Gray values (0 to 255) of all 65,536 stored values, as opaque canvas pixels: the LINEAR_EXACT function of DICOM PS3.3
 *  C.11.2.1.3.2. center, width: in stored values, width above 0. */
export function windowTable(center, width, inverted) {
  const table = new Uint32Array(65536);
  for (let value = 0; value < table.length; value++) {
    const share = Math.min(1, Math.max(0, (value - center) / width + 0.5));
    const gray = Math.round(255 * (inverted ? 1 - share : share));
    table[value] = 0xff000000 | (gray << 16) | (gray << 8) | gray;
  }
  return table;
}

/** The picture position (in picture pixels, fractions from the left and upper edge) at a canvas position.
 *  view: x, y: the picture position in the middle of the canvas; scale: canvas pixels a picture pixel; turn: quarter
 *  turns clockwise. canvas: width, height. */
export function toPicture(view, canvas, left, top) {
  const across = (left - canvas.width / 2) / view.scale;
  const down = (top - canvas.height / 2) / view.scale;
  const [x, y] = [[across, down], [down, -across], [-across, -down], [-down, across]][view.turn];
  return { x: view.x + x, y: view.y + y };
}

/** The level to draw from: level n is halved n times, and has at least a pixel for each of the canvas. */
export function levelFor(levels, scale) {
  return Math.max(0, Math.min(levels.length - 1, Math.floor(Math.log2(1 / scale) + 1e-9)));
}

/** Draw a view into pixels (canvas.width x canvas.height). levels: of the picture, each {data, width, height}; table: of
 *  windowTable; around: the colour beside the picture. Linear between the pixels of a level. */
export function draw(levels, view, canvas, table, pixels, around) {
  const number = levelFor(levels, view.scale);
  const level = levels[number];
  const full = levels[0];
  const step = 1 / view.scale;
  const factor = 2 ** number;
  const odd = view.turn % 2 === 1;
  const backwardsAcross = view.turn === 1 || view.turn === 2;
  const backwardsDown = view.turn === 2 || view.turn === 3;
  const alongX = (count, backwards) => taps(count, view.x, backwards ? -step : step, full.width, level.width, factor, 1);
  const alongY = (count, backwards) =>
    taps(count, view.y, backwards ? -step : step, full.height, level.height, factor, level.width);
  const across = odd ? alongY(canvas.width, backwardsAcross) : alongX(canvas.width, backwardsAcross);
  const down = odd ? alongX(canvas.height, backwardsDown) : alongY(canvas.height, backwardsDown);
  const { data } = level;
  pixels.fill(around);
  for (let row = down.first; row < down.end; row++) {
    const upper = down.low[row];
    const lower = down.high[row];
    const share = down.share[row];
    let at = row * canvas.width + across.first;
    for (let column = across.first; column < across.end; column++, at++) {
      const left = across.low[column];
      const right = across.high[column];
      const weight = across.share[column];
      const a = data[upper + left];
      const b = data[lower + left];
      const above = a + (data[upper + right] - a) * weight;
      const below = b + (data[lower + right] - b) * weight;
      pixels[at] = table[(above + (below - above) * share + 0.5) | 0];
    }
  }
}

/** For each canvas pixel along one axis the two pixels of a level beside it, as offsets, and the share of the second;
 *  first, end: the canvas pixels that lie on the picture. */
function taps(count, middle, step, fullLength, length, factor, stride) {
  const low = new Int32Array(count);
  const high = new Int32Array(count);
  const share = new Float32Array(count);
  let first = count;
  let end = 0;
  for (let at = 0; at < count; at++) {
    const position = middle + (at + 0.5 - count / 2) * step;
    if (position < 0 || position >= fullLength) continue;
    first = Math.min(first, at);
    end = at + 1;
    const place = Math.min(length - 1, Math.max(0, position / factor - 0.5));
    low[at] = Math.floor(place) * stride;
    high[at] = Math.min(length - 1, Math.floor(place) + 1) * stride;
    share[at] = place - Math.floor(place);
  }
  return { low, high, share, first, end };
}
