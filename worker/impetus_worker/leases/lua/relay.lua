-- Writes to token streams what running jobs say, each entry only while its run's token stands; tells which jobs that are
-- to run only while somebody waits for them nobody waits for any more.
--
-- ARGV: worker, prefix of the streams' keys, their time to live (s), prefix of the keys by which clients say that they
--       wait, then for each entry: job id, token, queue, event, run, at, text, channel or status, result
--   event: 'start', 'text' and 'end' are written; 'ask' asks
-- Returns the ids of abandoned jobs. Running out of memory ends it with the server's error: it may be sent again whole,
-- because a reader knows a piece that it has by its place in the text.
local worker, abandoned = ARGV[1], {}

local function entry_of(event, run, from, text, status, result)
  local entry = {'event', event, 'run', run}
  local function put(name, value)
    entry[#entry + 1] = name
    entry[#entry + 1] = value
  end
  if event == 'text' then
    put('at', from)
    put('text', text)
    if status ~= '' then put('channel', status) end
  elseif event == 'end' then
    put('status', status)
    if result ~= '' then put('result', result) end
  end
  return entry
end

for at = 5, #ARGV, 9 do
  local id, token, queue, event = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if read('HGET', TOKENS .. queue, id) == token .. ' ' .. worker then
    if event == 'ask' then
      if call('EXISTS', ARGV[4] .. id) == 0 then abandoned[#abandoned + 1] = id end
    else
      local stream = ARGV[2] .. id
      write('XADD', stream, '*', unpack(entry_of(event, unpack(ARGV, at + 4, at + 8))))
      call('EXPIRE', stream, ARGV[3])
    end
  end
end
return abandoned
