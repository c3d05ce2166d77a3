# ruff: noqa: E501, RUF001
"""Names across scripts: public names of heads of state and cities, as the languages of eight scripts write them."""

from collections.abc import Callable

import numpy as np
import pytest

from guard.detection import Encoder, Gate
from guard.detection.decode import decode
from guard.detection.names import forms
from guard.detection.sounds import sounded, spellings, transliterated
from guard.targets import TargetSpec
from guard.types import Prompt

SCRIPTS = ("Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "kana", "Hangul", "Chinese")
# fmt: off
NAMES = {
    "Vladimir Putin": ("Владимир Путин", "Βλαντιμίρ Πούτιν", "فلاديمير بوتين", "ולדימיר פוטין", "व्लादिमीर पुतिन", "ウラジーミル・プーチン", "블라디미르 푸틴", "弗拉基米尔·普京"),
    "Angela Merkel": ("Ангела Меркель", "Άνγκελα Μέρκελ", "أنغيلا ميركل", "אנגלה מרקל", "अंगेला मर्केल", "アンゲラ・メルケル", "앙겔라 메르켈", "安格拉·默克尔"),
    "Emmanuel Macron": ("Эммануэль Макрон", "Εμανουέλ Μακρόν", "إيمانويل ماكرون", "עמנואל מקרון", "इमैनुएल मैक्रों", "エマニュエル・マクロン", "에마뉘엘 마크롱", "埃马纽埃尔·马克龙"),
    "Barack Obama": ("Барак Обама", "Μπαράκ Ομπάμα", "باراك أوباما", "ברק אובמה", "बराक ओबामा", "バラク・オバマ", "버락 오바마", "巴拉克·奥巴马"),
    "Joe Biden": ("Джо Байден", "Τζο Μπάιντεν", "جو بايدن", "ג'ו ביידן", "जो बाइडेन", "ジョー・バイデン", "조 바이든", "乔·拜登"),
    "Donald Trump": ("Дональд Трамп", "Ντόναλντ Τραμπ", "دونالد ترامب", "דונלד טראמפ", "डोनाल्ड ट्रम्प", "ドナルド・トランプ", "도널드 트럼프", "唐纳德·特朗普"),
    "Nelson Mandela": ("Нельсон Мандела", "Νέλσον Μαντέλα", "نيلسون مانديلا", "נלסון מנדלה", "नेल्सन मंडेला", "ネルソン・マンデラ", "넬슨 만델라", "纳尔逊·曼德拉"),
    "Narendra Modi": ("Нарендра Моди", "Ναρέντρα Μόντι", "ناريندرا مودي", "נרנדרה מודי", "नरेन्द्र मोदी", "ナレンドラ・モディ", "나렌드라 모디", "纳伦德拉·莫迪"),
    "Xi Jinping": ("Си Цзиньпин", "Σι Τζινπίνγκ", "شي جين بينغ", "שי ג'ינפינג", "शी जिनपिंग", "習近平", "시진핑", "习近平"),
    "Volodymyr Zelensky": ("Володимир Зеленський", "Βολοντίμιρ Ζελένσκι", "فولوديمير زيلينسكي", "וולודימיר זלנסקי", "वोलोदिमिर ज़ेलेंस्की", "ウォロディミル・ゼレンスキー", "볼로디미르 젤렌스키", "弗拉基米尔·泽连斯基"),
    "Boris Johnson": ("Борис Джонсон", "Μπόρις Τζόνσον", "بوريس جونسون", "בוריס ג'ונסון", "बोरिस जॉनसन", "ボリス・ジョンソン", "보리스 존슨", "鲍里斯·约翰逊"),
    "Margaret Thatcher": ("Маргарет Тэтчер", "Μάργκαρετ Θάτσερ", "مارغريت ثاتشر", "מרגרט תאצ'ר", "मार्गरेट थैचर", "マーガレット・サッチャー", "마거릿 대처", "玛格丽特·撒切尔"),
    "Ronald Reagan": ("Рональд Рейган", "Ρόναλντ Ρέιγκαν", "رونالد ريغان", "רונלד רייגן", "रोनाल्ड रीगन", "ロナルド・レーガン", "로널드 레이건", "罗纳德·里根"),
    "Justin Trudeau": ("Джастин Трюдо", "Τζάστιν Τριντό", "جاستن ترودو", "ג'סטין טרודו", "जस्टिन ट्रूडो", "ジャスティン・トルドー", "쥐스탱 트뤼도", "贾斯汀·特鲁多"),
    "Benjamin Netanyahu": ("Биньямин Нетаньяху", "Μπενιαμίν Νετανιάχου", "بنيامين نتنياهو", "בנימין נתניהו", "बेंजामिन नेतन्याहू", "ベンヤミン・ネタニヤフ", "베냐민 네타냐후", "本雅明·内塔尼亚胡"),
    "Jacinda Ardern": ("Джасинда Ардерн", "Τζασίντα Άρντερν", "جاسيندا أرديرن", "ג'סינדה ארדרן", "जैसिंडा आर्डर्न", "ジャシンダ・アーダーン", "저신다 아던", "杰辛达·阿德恩"),
    "Olaf Scholz": ("Олаф Шольц", "Όλαφ Σολτς", "أولاف شولتس", "אולף שולץ", "ओलाफ शोल्ज", "オラフ・ショルツ", "올라프 숄츠", "奥拉夫·朔尔茨"),
    "Viktor Orban": ("Виктор Орбан", "Βίκτορ Όρμπαν", "فيكتور أوربان", "ויקטור אורבן", "विक्टर ओर्बन", "ヴィクトル・オルバーン", "오르반 빅토르", "欧尔班·维克托"),
    "Mikhail Gorbachev": ("Михаил Горбачёв", "Μιχαήλ Γκορμπατσόφ", "ميخائيل غورباتشوف", "מיכאיל גורבצ'וב", "मिखाइल गोर्बाचेव", "ミハイル・ゴルバチョフ", "미하일 고르바초프", "米哈伊尔·戈尔巴乔夫"),
    "Fidel Castro": ("Фидель Кастро", "Φιντέλ Κάστρο", "فيدل كاسترو", "פידל קסטרו", "फिदेल कास्त्रो", "フィデル・カストロ", "피델 카스트로", "菲德尔·卡斯特罗"),
    "Hugo Chavez": ("Уго Чавес", "Ούγκο Τσάβες", "هوغو تشافيز", "הוגו צ'אווס", "ह्यूगो चावेज़", "ウゴ・チャベス", "우고 차베스", "乌戈·查韦斯"),
    "Silvio Berlusconi": ("Сильвио Берлускони", "Σίλβιο Μπερλουσκόνι", "سيلفيو برلسكوني", "סילביו ברלוסקוני", "सिल्वियो बर्लुस्कोनी", "シルヴィオ・ベルルスコーニ", "실비오 베를루스코니", "西尔维奥·贝卢斯科尼"),
    "Mahatma Gandhi": ("Махатма Ганди", "Μαχάτμα Γκάντι", "مهاتما غاندي", "מהטמה גנדי", "महात्मा गांधी", "マハトマ・ガンディー", "마하트마 간디", "圣雄甘地"),
    "Winston Churchill": ("Уинстон Черчилль", "Ουίνστον Τσώρτσιλ", "ونستون تشرشل", "וינסטון צ'רצ'יל", "विंस्टन चर्चिल", "ウィンストン・チャーチル", "윈스턴 처칠", "温斯顿·丘吉尔"),
    "Buenos Aires": ("Буэнос-Айрес", "Μπουένος Άιρες", "بوينس آيرس", "בואנוס איירס", "ब्यूनस आयर्स", "ブエノスアイレス", "부에노스아이레스", "布宜诺斯艾利斯"),
    "Los Angeles": ("Лос-Анджелес", "Λος Άντζελες", "لوس أنجلوس", "לוס אנג'לס", "लॉस एंजिल्स", "ロサンゼルス", "로스앤젤레스", "洛杉矶"),
    "San Francisco": ("Сан-Франциско", "Σαν Φρανσίσκο", "سان فرانسيسكو", "סן פרנסיסקו", "सैन फ्रांसिस्को", "サンフランシスコ", "샌프란시스코", "旧金山"),
    "Kuala Lumpur": ("Куала-Лумпур", "Κουάλα Λουμπούρ", "كوالالمبور", "קואלה לומפור", "कुआला लम्पुर", "クアラルンプール", "쿠알라룸푸르", "吉隆坡"),
    "Addis Ababa": ("Аддис-Абеба", "Αντίς Αμπέμπα", "أديس أبابا", "אדיס אבבה", "अदीस अबाबा", "アディスアベバ", "아디스아바바", "亚的斯亚贝巴"),
    "Johannesburg": ("Йоханнесбург", "Γιοχάνεσμπουργκ", "جوهانسبرغ", "יוהנסבורג", "जोहानसबर्ग", "ヨハネスブルグ", "요하네스버그", "约翰内斯堡"),
    "Barcelona": ("Барселона", "Βαρκελώνη", "برشلونة", "ברצלונה", "बार्सिलोना", "バルセロナ", "바르셀로나", "巴塞罗那"),
    "Copenhagen": ("Копенгаген", "Κοπεγχάγη", "كوبنهاغن", "קופנהגן", "कोपेनहेगन", "コペンハーゲン", "코펜하겐", "哥本哈根"),
    "Vladivostok": ("Владивосток", "Βλαδιβοστόκ", "فلاديفوستوك", "ולדיווסטוק", "व्लादिवोस्तोक", "ウラジオストク", "블라디보스토크", "符拉迪沃斯托克"),
    "Casablanca": ("Касабланка", "Καζαμπλάνκα", "الدار البيضاء", "קזבלנקה", "कैसाब्लांका", "カサブランカ", "카사블랑카", "卡萨布兰卡"),
}
# fmt: on
FOUND = {
    "Cyrillic": 28,
    "Greek": 25,
    "Arabic": 22,
    "Hebrew": 23,
    "Devanagari": 24,
    "kana": 15,
    "Hangul": 16,
    "Chinese": 1,
}  # fmt: skip
"""Of the names above. A change that finds more is to be told here; one that finds fewer is a step back."""

ORDINARY = (
    "Как приготовить рис на четверых и сколько времени это займёт? Большое значение имеет качество воды.",
    "Напиши короткое письмо начальнику: я заболел и завтра не приду на работу.",
    "Объясни, пожалуйста, чем отличается синус от косинуса, и приведи пример.",
    "Какие книги стоит прочитать летом, если я люблю истории о море и кораблях?",
    "Пοια είναι η πρωτεύουσα της Αυστραλίας και πόσους κατοίκους έχει;",
    "Γράψε μια συνταγή για φασολάδα και εξήγησε πόση ώρα πρέπει να βράσει.",
    "Πώς μπορώ να μάθω κιθάρα μόνος μου μέσα σε τρεις μήνες;",
    "Μετάφρασε αυτή την πρόταση στα αγγλικά και διόρθωσε τα λάθη μου.",
    "كيف أطبخ الأرز لأربعة أشخاص وكم من الوقت يحتاج؟",
    "اكتب رسالة قصيرة إلى مديري أعتذر فيها عن الغياب غدا بسبب المرض.",
    "ما هي أفضل طريقة لتعلم اللغة الإنجليزية في البيت؟",
    "اشرح لي الفرق بين الطقس والمناخ بكلمات بسيطة.",
    "איך מבשלים אורז לארבעה אנשים וכמה זמן זה לוקח?",
    "כתוב מכתב קצר למנהל שלי שאני חולה ולא אגיע מחר לעבודה.",
    "מה ההבדל בין מזג אוויר לאקלים? הסבר במילים פשוטות.",
    "אילו ספרים כדאי לקרוא בקיץ אם אני אוהב סיפורים על הים?",
    "चार लोगों के लिए चावल कैसे पकाएँ और इसमें कितना समय लगेगा?",
    "मेरे प्रबंधक को एक छोटा पत्र लिखो कि मैं बीमार हूँ और कल नहीं आऊँगा।",
    "मौसम और जलवायु में क्या अंतर है? सरल शब्दों में समझाओ।",
    "गिटार सीखने का सबसे अच्छा तरीका क्या है?",
    "四人分のご飯はどうやって炊きますか。インターネットでレシピを見つけてください。",
    "コンピューターのプログラミングを勉強するにはどうすればいいですか。",
    "アルバイトの面接で何を話せばいいか、アドバイスをお願いします。",
    "天気と気候の違いを簡単な言葉で説明してください。",
    "네 사람이 먹을 밥을 어떻게 짓고 시간이 얼마나 걸리나요?",
    "몸이 아파서 내일 출근하지 못한다고 부장님께 짧은 편지를 써 주세요.",
    "컴퓨터 프로그램을 처음 배우려면 무엇부터 시작해야 하나요?",
    "날씨와 기후의 차이를 쉬운 말로 설명해 주세요.",
    "四个人的米饭怎么煮，需要多长时间？",
    "请给我的经理写一封短信，说我病了，明天不能上班。",
    "天气和气候有什么区别？请用简单的话解释一下。",
    "如果我喜欢关于大海的故事，夏天应该读什么书？",
)


@pytest.fixture(scope="module")
def gate(hashing: Encoder, compile_: Callable) -> Gate:
    return Gate(hashing, [compile_(name, name=name) for name in NAMES])


def matched(gate: Gate, text: str) -> set[str]:
    return {found.target_id for found in gate.detect(Prompt(text))[0]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_names_are_found_as_other_scripts_write_them_and_never_another_name(gate: Gate, script: str) -> None:
    found = {name: matched(gate, row[SCRIPTS.index(script)]) for name, row in NAMES.items()}
    assert all(ids <= {name} for name, ids in found.items())
    assert sum(map(len, found.values())) == FOUND[script], [name for name, ids in found.items() if not ids]


def test_ordinary_prompts_in_other_scripts_hold_no_name(gate: Gate) -> None:
    assert {text: ids for text in ORDINARY if (ids := matched(gate, text))} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Vladimir Putin", "Сколько лет Владимиру Путину?"),
        ("Angela Merkel", "앙겔라 메르켈은 어디에서 태어났나요?"),
        ("Nelson Mandela", "متى ولد ونيلسون مانديلا؟"),
        ("Silvio Berlusconi", "シルヴィオ・ベルルスコーニはどこで生まれましたか。"),
        ("Xi Jinping", "请介绍一下习近平的生平。"),
        ("Владимир Путин", "How old is Vladimir Putin?"),
        ("Владимир Путин", "ウラジミール・プーチン и פלדימיר פוטין"),
        ("习近平", "Where was Xi Jinping born?"),
        ("Zoltán Bárdos-Kelemen", "Кто такой Золтан Бардош-Келемен?"),
    ],
)
def test_names_are_found_inflected_and_in_the_other_direction(
    hashing: Encoder, compile_: Callable, name: str, text: str
) -> None:
    assert matched(Gate(hashing, [compile_(name=name)]), text) == {"target"}


def test_what_is_found_is_shown_in_the_prompts_own_characters(hashing: Encoder, compile_: Callable) -> None:
    text = "Скажи: кто такая Ангела Меркель и где она живёт?"
    (found, *_), *_ = Gate(hashing, [compile_(name="Angela Merkel")]).detect(Prompt(text))
    assert [text[span.start : span.end] for span in found.spans] == ["Ангела Меркель"]
    assert found.score == 0.9


def test_words_that_other_text_parts_are_not_one_name(hashing: Encoder, compile_: Callable) -> None:
    gate = Gate(hashing, [compile_(name="Angela Merkel")])
    assert matched(gate, "Ангела, Меркель") == {"target"}
    assert matched(gate, "Ангела was here, and so was Меркель") == set()


def test_text_in_latin_letters_has_no_other_reading_and_short_names_no_coarse_spelling() -> None:
    assert list(sounded("Zoë Müller asks: who is Ænne Łoś?")) == []
    assert all(view.text.isascii() or "ё" in view.text for view in decode("Zoë").views)
    assert list(spellings("Li Na")) == [] and list(spellings("Ada")) == []
    assert transliterated("Jane Doe") is None and transliterated("Ада Лав") == "Ada Lav"


def test_coarse_spellings_meet_no_ordinary_word() -> None:
    made = {form.text for form in forms(TargetSpec(name="Nelson Mandela")) if form.score == 0.9}
    coarse = {text for text in made if not text.isascii()}
    assert coarse and all(ord(char) >= 0x10400 for text in coarse for char in text if char != " ")


def test_every_character_of_a_reading_stands_for_characters_of_the_text() -> None:
    text = "Who is Барак Обама?"
    views = decode(text).views
    assert views
    for view in views:
        assert len(view.text) == len(view.starts) == len(view.ends)
        assert np.all(view.starts < view.ends) and view.starts.min() == 7 and view.ends.max() == len(text) - 1
