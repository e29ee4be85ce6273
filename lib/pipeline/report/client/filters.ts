/** The fields that say which rows are shown. */
import { button, html, quoted } from './dom.js';
import { count } from './format.js';
import { failureGroups } from './statistics.js';
import { NO_FILTER, type Filter, type State } from './state.js';

/** The fields, and the words that say how many rows they leave. */
export function filters(state: State): { fields: HTMLElement; shown: HTMLElement } {
  const text = html('input', {
    type: 'search',
    id: 'filter-text',
    placeholder: 'key, file, code or message',
    autocomplete: 'off',
    spellcheck: 'false',
  });
  const sensor = html(
    'select',
    { 'aria-label': 'Sensor' },
    html('option', { value: 'lidar' }, 'LiDAR'),
    html('option', { value: 'camera' }, 'Cameras'),
  );
  const bound = (label: string, value: number): HTMLInputElement =>
    html('input', { type: 'number', min: 0, max: 100, step: 'any', value, 'aria-label': label });
  const from = bound('Least share in percent', 0);
  const to = bound('Greatest share in percent', 100);
  const failuresOnly = html('input', { type: 'checkbox', id: 'filter-failures' });
  const shown = html('output', { class: 'shown', 'aria-live': 'polite' });
  const chip = html('span', { class: 'chip', hidden: true });
  const names = new Map(failureGroups(state.rows).map(({ id, code, stage }) => [id, `${code} in ${stage}`]));

  /** A bound that is empty or no number bounds nothing. */
  const share = (input: HTMLInputElement, otherwise: number): number =>
    input.value === '' || Number.isNaN(input.valueAsNumber) ? otherwise : input.valueAsNumber / 100;
  const read = (): Partial<Filter> => ({
    text: text.value,
    sensor: sensor.value === 'camera' ? 'camera' : 'lidar',
    from: share(from, 0),
    to: share(to, 1),
    failuresOnly: failuresOnly.checked,
  });
  const reset = button('Clear', () => {
    [text.value, sensor.value, from.value, to.value, failuresOnly.checked] = ['', 'lidar', '0', '100', false];
    state.setFilter(NO_FILTER);
    text.focus();
  });
  const fields = html(
    'div',
    { class: 'filters', role: 'search' },
    html('label', { class: 'grow' }, html('span', {}, 'Find'), text),
    html(
      'fieldset',
      {},
      html('legend', {}, 'Attention mass'),
      sensor,
      html('span', {}, 'from'),
      from,
      html('span', {}, 'to'),
      to,
      html('span', {}, '%'),
    ),
    html('label', { class: 'check' }, failuresOnly, html('span', {}, 'Failures only')),
    chip,
    reset,
  );
  for (const input of [text, sensor, from, to, failuresOnly])
    input.addEventListener('input', () => state.setFilter(read()));

  const say = (): void => {
    const { filter, rows } = state;
    shown.textContent = `${count(state.shown.length)} of ${count(rows.length)}`;
    chip.hidden = filter.failure === undefined;
    const name = filter.failure === undefined ? '' : (names.get(filter.failure) ?? '');
    const remove = button('×', () => state.setFilter({ failure: undefined }), {
      'aria-label': `Show more than ${name}`,
    });
    chip.replaceChildren(quoted(name), remove);
    reset.disabled = JSON.stringify(filter) === JSON.stringify(NO_FILTER);
  };
  state.onShown(say);
  say();
  return { fields, shown };
}
